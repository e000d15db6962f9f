"""Every study has the floor without asking for it; it changes no other run, and each condition has its own."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from mtlbench import suite as suites
from mtlbench.errors import SuiteError
from mtlbench.metrics.protocol import Protocol
from mtlbench.runs.store import RunFolder, read_json
from mtlbench.study import resolve as studies
from mtlbench.tasks import Classification, Depth
from tests.support.command_line import mtlbench, write_suite

SUITE = """\
name: mine
version: 1
data:
  module: tests.support.scenario_suite:Three
  options: {train: 40, val: 12}
tasks: {left: {}, right: {}, ink: {}, segments: {}}
model:
  encoder: vit_tiny_patch16_224
  encoder_options: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}
  image_size: [24, 32]
  decoder_channels: 8
trainer: {steps: 3, batch_size: 4, log_every: 1}
methods: [uniform]
baseline: uniform
seeds: [0, 1]
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_suite(tmp_path, "mine", SUITE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolved(folder: Path, *overrides: str) -> studies.Study:
    return studies.resolve(suites.load(str(folder / "mine.yaml"), overrides), studies.Local(), list(overrides))


def rows(study: studies.Study) -> list[tuple[str, int, str]]:
    return [(case.spec.label, case.spec.seed, case.condition) for case in study.cases]


def test_every_study_has_it_last_unless_it_says_no(mine: Path) -> None:
    assert rows(resolved(mine)) == [("uniform", 0, ""), ("uniform", 1, ""), ("floor", 0, ""), ("floor", 1, "")]
    assert rows(resolved(mine, "floor=false")) == [("uniform", 0, ""), ("uniform", 1, "")]


def test_it_changes_no_other_run(mine: Path) -> None:
    with_it, without = resolved(mine), resolved(mine, "floor=false")
    assert [c.spec.identity() for c in with_it.cases[:2]] == [c.spec.identity() for c in without.cases]
    record = with_it.record
    assert record["tasks"]["left"]["floor"] is True and record["tasks"]["left"]["best"] == 1
    assert record["encoders"] == without.record["encoders"]


def test_a_best_value_is_no_part_of_identity() -> None:
    plain, other = Protocol("a@1", higher_is_better=True), Protocol("a@1", higher_is_better=True, best=0.5)
    assert plain.identity() == other.identity() == {"id": "a@1", "higher_is_better": True, "unit": ""}
    assert (plain.attainable, other.attainable) == (1, 0.5)
    assert Protocol("b@1", higher_is_better=False).attainable == 0
    assert Classification("a").describe()["protocols"] == [plain.identity() | {"id": "accuracy@1"}]


def test_a_suite_may_name_it_itself(mine: Path) -> None:
    assert rows(resolved(mine, "methods=[floor, uniform]", "seeds=[0]")) == [("floor", 0, ""), ("uniform", 0, "")]
    renamed = resolved(mine, "methods=[uniform, {name: floor, label: blind}]", "seeds=[0]")
    assert rows(renamed) == [("uniform", 0, ""), ("blind", 0, "")]


def test_a_run_of_one_method_has_no_floor(mine: Path) -> None:
    assert mtlbench(mine, "run", "mine.yaml", "--method", "uniform", "seeds=[0]", "trainer.steps=1").code == 0
    assert [path.name.split("-")[0] for path in (mine / "results/mine").glob("*/result.json")] != ["floor"]
    assert not list((mine / "results/mine").glob("floor-*"))


class NoFloor(Depth):
    """A kind without a floor."""

    def blind(self) -> None:
        """Returns nothing."""
        return


def test_a_kind_without_a_floor_is_left_out(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classification, "blind", lambda self: None)
    study = resolved(mine, "seeds=[0]")
    assert [list(case.spec.tasks) for case in study.cases] == [
        ["left", "right", "ink", "segments"],
        ["ink", "segments"],
    ]
    assert {name: about["floor"] for name, about in study.record["tasks"].items()} == {
        "left": False,
        "right": False,
        "ink": True,
        "segments": True,
    }
    assert rows(resolved(mine, "seeds=[0]", "tasks={left: {}}", "data.options.train=40"))
    few = "scenario={kind: low_resource, task: left, fractions: [0.5]}"
    assert rows(resolved(mine, few, "seeds=[0]")) == [("uniform", 0, "50 %")]
    with pytest.raises(SuiteError, match=r"needs a task whose kind defines one.*Found left"):
        resolved(mine, few, "methods=[floor]")


# ---- conditions -----------------------------------------------------------------------------------------------------


def runs(study: studies.Study) -> list[Any]:
    """Returns the runs of the floor's plans."""
    from mtlbench.methods.controls.floor import Floor

    plans = [case.begin(Floor.plan) for case in study.cases if case.spec.label == "floor"]
    return [next(plan) for plan in plans]


def test_every_share_has_a_floor_on_its_labels(mine: Path) -> None:
    study = resolved(mine, "scenario={kind: low_resource, task: left, fractions: [0.1, 1.0]}")
    assert rows(study)[-4:] == [("floor", s, f"{r} %") for s in (0, 1) for r in (10, 100)]
    found = [run for (run,) in runs(study)]
    assert [(run.seed, run.data.get("labels")) for run in found] == [
        (0, {"left": {"share": 0.1}}), (0, None), (1, {"left": {"share": 0.1}}), (0, None),
    ]  # fmt: skip
    assert found[1].run_id == found[3].run_id


def test_a_new_task_has_a_floor_on_its_examples_alone(mine: Path) -> None:
    study = resolved(mine, "scenario={kind: unseen_task, task: left, related: [right], examples: [4, 8], steps: 2}")
    found = [run for (run,) in runs(study)]
    assert [(list(run.tasks), run.data["labels"], run.start, run.trainer["steps"]) for run in found[:2]] == [
        (["left"], {"left": {"count": count}}, None, 0) for count in (4, 8)
    ]
    assert {case.condition for case in study.cases if case.spec.label == "floor"} == {"4 examples", "8 examples"}


def test_with_an_unrelated_task_nothing_changes(mine: Path) -> None:
    study = resolved(mine, "scenario={kind: unrelated_task, task: ink}", "seeds=[0]")
    found = [run for (run,) in runs(study)]
    assert [list(run.tasks) for run in found] == [
        ["left", "right", "segments"],
        *[["left", "right", "ink", "segments"]] * 2,
    ]


# ---- the whole way --------------------------------------------------------------------------------------------------


def test_a_bench_shows_it_and_repeats_nothing(mine: Path) -> None:
    words = ("bench", "mine.yaml", "--jobs", "1", "scenario={kind: low_resource, task: left, fractions: [0.5, 1.0]}")
    first = mtlbench(mine, *words, "seeds=[0]")
    assert first.code == 0, first.text
    assert any(line.startswith("floor ") for line in first.text.splitlines()), first.text
    folder = mine / "results/mine"
    done = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("floor-*/result.json")}
    assert len(done) == 2
    for name in ("leaderboard.md", "leaderboard.tex", "report.html"):
        assert "floor" in (folder / name).read_text(), name
    with (folder / "leaderboard.csv").open() as file:
        table = [line for line in csv.DictReader(file) if line["label"] == "floor"]
    cells = {(x["condition"], x["quantity"]): float(x["mean"]) for x in table if x["condition"]}
    assert {("50 %", "left"), ("100 %", "left")} <= cells.keys()
    study = read_json(folder / "study.json") or {}
    (run,) = {
        row["serving"]["left"] for row in study["rows"] if (row["label"], row.get("condition")) == ("floor", "50 %")
    }
    assert cells["50 %", "left"] == (RunFolder(folder, run).result() or {})["scores"]["left"]["accuracy@1"]
    again = mtlbench(mine, *words, "seeds=[0, 1]")
    assert again.code == 0, again.text
    after = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("floor-*/result.json")}
    assert done.items() <= after.items() and len(after) == 3, "one more, for the labels that seed 1 keeps"
