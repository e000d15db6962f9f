"""No panel points to a value that no run logs: workspaces of miniatures against what W&B reads back from their runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mtlbench import report
from mtlbench.cli.stored import study_of
from mtlbench.report.dashboard.content import study_runs
from mtlbench.report.dashboard.layout import dashboard, logged
from mtlbench.report.dashboard.mirror import mirror
from mtlbench.runs import keys
from mtlbench.study.record import states_of
from mtlbench.tracking import workspace
from mtlbench.tracking.panels import Dashboard, Lines, keys_of
from mtlbench.training.loggers import read_rows
from mtlbench.training.traces import WEIGHTS, left_behind
from tests.support.command_line import mtlbench
from tests.support.tracked import MINIATURES, benched, read_back, records

EVERYWHERE = {"Verdict", "Per task", "Cost", "Training", "Pictures"}
SECTIONS = {
    "scenes": {"Gradients"},
    "experts": {"Experts"},
    "grouping": {"Grouping"},
    "video": {"Method"},
}
"""Sections that the suites are there for."""


@dataclass(frozen=True)
class Mini:
    """A miniature of a suite: its folder, its dashboard, and what W&B has of it."""

    name: str
    root: Path
    built: Dashboard
    history: set[str]
    summary: set[str]
    runs: set[str]
    config: dict[str, dict[str, Any]]


@pytest.fixture(scope="module", params=sorted(MINIATURES))
def mini(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mini:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        root = benched(tmp_path_factory.mktemp("mini"), request.param)
        states = states_of(*study_of(root.parent, root.name))
        report.write(root, states)
        assert mirror(root, states) > 1
        assert mirror(root, states) == 0, "nothing has changed, so nothing is logged again"
    study, board = report.load(root, states)
    built = dashboard(study, board, logged(study, study_runs(study, board)))
    return Mini(request.param, root, built, *read_back(root))


def test_every_value_that_a_panel_points_to_was_logged(mini: Mini) -> None:
    over_steps = {key for s in mini.built.sections for p in s.panels if isinstance(p, Lines) for key in p.keys}
    assert over_steps and over_steps <= mini.history
    assert mini.built.keys() - over_steps <= mini.summary
    assert set(mini.built.runs) <= mini.runs


def test_the_workspace_names_exactly_the_values_of_the_dashboard(mini: Mini) -> None:
    spec = json.loads(workspace.specification(mini.built, "someone", "mtlbench"))["spec"]["section"]
    texts = _texts(spec["panelBankConfig"])
    pointed = {key for section in mini.built.sections for panel in section.panels for key in keys_of(panel)}
    assert pointed <= texts
    assert texts & (mini.history | mini.summary) <= pointed | {keys.AXIS}
    (shown,) = spec["runSets"]
    assert [name.removeprefix("summary:") for name in shown["runFeed"]["columnOrder"][1:]] == list(mini.built.columns)
    assert [section["name"] for section in spec["panelBankConfig"]["sections"]] == [s.name for s in mini.built.sections]
    assert {s.name for s in mini.built.sections} >= EVERYWHERE | SECTIONS[mini.name]
    assert all(section["panels"] for section in spec["panelBankConfig"]["sections"])


def test_runs_are_filtered_grouped_and_coloured_by_row(mini: Mini) -> None:
    spec = json.loads(workspace.specification(mini.built, "someone", "mtlbench"))["spec"]["section"]
    (shown,) = spec["runSets"]
    assert shown["grouping"] == [{"section": "config", "name": "label.value"}]
    (condition,) = shown["filters"]["filters"]
    assert (condition["key"]["name"], condition["op"]) == ("name", "IN")
    assert set(condition["value"]) == set(mini.built.runs)
    rows = {config["label"] for config in mini.config.values() if config["kind"] == "row"}
    assert {label for label in rows for key in spec["customRunColors"] if label in key} == rows
    assert len(set(spec["customRunColors"].values())) == len(rows), "every row has a colour of its own"
    assert {config["kind"] for config in mini.config.values()} == {"training", "row", "summary"}


def test_every_value_that_a_run_records_over_steps_is_declared(mini: Mini) -> None:
    recorded = {key for path in mini.root.glob("*/metrics.jsonl") for row in read_rows(path) for key in row} - {"step"}
    assert recorded == {key for family in keys.HISTORY for key in family.among(recorded)}


def _texts(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value, value.removeprefix("summary:")}
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(_texts, inner)) if inner else set()


@pytest.mark.parametrize("mini", ["experts"], indirect=True)
def test_an_extracted_network_is_kept_as_an_artifact_on_request(mini: Mini, tmp_path: Path) -> None:
    (run,) = mini.root.glob("mod_squad-*")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE", raising=False)
        words = ("extract", str(run), "--task", "depth", "--threshold", "0", "--out", "small", "--track")
        answer = mtlbench(tmp_path, *words)
        assert answer.code == 2 and "Set WANDB_MODE to online or offline" in answer.text
        patch.setenv("WANDB_MODE", "offline")
        answer = mtlbench(tmp_path, *words)
        assert answer.code == 0, answer.text
    found = next(records(path) for path in mini.root.glob("wandb/*/*.wandb") if "-depth-" in path.name)
    (artifact,) = found["artifact"] if "artifact" in found else [found["request"][0]["log_artifact"]["artifact"]]
    assert artifact["name"] == f"{run.name}-depth-0"
    assert {entry["path"] for entry in artifact["manifest"]["contents"]} == {"model.json", "model.safetensors"}


def test_final_weights_are_an_artifact_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"run_id": "uniform-s0-1", "scores": {}, "cost": {}}
    monkeypatch.delenv(WEIGHTS, raising=False)
    assert left_behind(result, {}, {}, tmp_path).files == {}
    monkeypatch.setenv(WEIGHTS, "1")
    assert left_behind(result, {}, {}, tmp_path).files == {"uniform-s0-1-weights": [tmp_path / "final.ckpt"]}


def test_the_page_lists_every_value_that_is_recorded_over_steps() -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "wandb.md").read_text()
    for family in keys.HISTORY:
        name = family.template.replace("|", "\\|")
        assert f"| `{name}` | {family.about} |" in page
