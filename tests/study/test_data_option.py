"""The scenario data_option: one option of the data takes several values, and all else stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtlbench import suite as suites
from mtlbench.data_modules.control import Sequences
from mtlbench.errors import MtlbenchError
from mtlbench.study.resolve import Local, resolve
from mtlbench.study.scenarios.data_option import DataOption

SUITE = """\
name: mine
version: 1
data:
  module: data_modules.control:PointMass
  options: {streams: [reach, gate], demonstrations: 2, mixing: uniform, slots: 2}
model: {encoder: "mlp:residual", decoder_channels: 8}
trainer: {steps: 2, batch_size: 4, evaluate_every: 1}
methods: [single_task, uniform]
scenario: {kind: data_option, option: mixing, values: [uniform, score]}
"""


PLAIN = SUITE.partition("scenario:")[0]


def resolved(folder: Path, *overrides: str, suite: str = SUITE) -> Any:
    (folder / "mine.yaml").write_text(suite)
    return resolve(suites.load(str(folder / "mine.yaml"), overrides), Local(), list(overrides))


def test_every_value_is_a_condition_and_changes_nothing_else(tmp_path: Path) -> None:
    study = resolved(tmp_path)
    assert [(case.spec.label, case.condition) for case in study.cases] == [
        (label, f"mixing={rule}") for label in ("single_task", "uniform", "floor") for rule in ("uniform", "score")
    ]
    one, other = (case.spec for case in study.cases if case.spec.label == "uniform")
    assert one.data["options"]["mixing"] == "uniform" and other.data["options"]["mixing"] == "score"
    same = {**other.data, "options": {**other.data["options"], "mixing": "uniform"}}
    assert same == one.data and one.hash != other.hash and one.trainer == other.trainer
    (plain,) = (case.spec for case in resolved(tmp_path, suite=PLAIN).cases if case.spec.label == "uniform")
    assert plain.hash == one.hash, "with the suite's own value it is the same run"


def test_a_cell_is_the_mean_drop_or_the_score_of_a_task() -> None:
    mean = DataOption(option="mixing", values=["uniform", {"rule": "score", "power": 2}]).described()
    assert mean["base"] == "mixing=uniform" and mean["columns"] == ['mixing={"rule": "score", "power": 2}']
    one = DataOption("push", "noise", [0.1, 0.2]).described()
    assert one["target"] == "push" and one["columns"] == ["noise=0.1", "noise=0.2"]
    assert one["difference"] == "second − first"
    assert "difference" not in DataOption("push", "noise", [0.1, 0.2, 0.3]).described()


def test_the_task_keeps_few_labels_under_every_value(tmp_path: Path) -> None:
    scenario = "scenario={kind: data_option, task: gate, option: mixing, values: [uniform, score], examples: 5}"
    study = resolved(tmp_path, scenario)
    assert all(case.spec.data["labels"] == {"gate": {"count": 5}} for case in study.cases) and len(study.cases) == 6
    assert study.record["scenario"]["text"].endswith("; the task keeps 5 labels")


@pytest.mark.parametrize(("section", "message"), [
    ("option: mixing, values: [uniform, score], examples: 5", "for the option task.*found 5 and no task"),
    ("task: gate, option: mixing, values: [uniform, score], examples: 0", "at least 1.*found 0"),
    ("task: gate, option: mixing, values: [uniform, score], examples: 99999", "cannot ask for more"),
    ("option: mixing, values: [uniform]", "at least two"),
    ("option: mixing, values: [uniform, uniform]", "distinct"),
    ("option: '', values: [1, 2]", "option names an option"),
    ("option: mixng, values: [uniform, score]", "mixing"),
    ("option: streams, values: [[reach, gate], [reach]]", "keep the tasks"),
    ("task: raech, option: mixing, values: [uniform, score]", "reach"),
])  # fmt: skip
def test_what_makes_no_comparison_is_refused(tmp_path: Path, section: str, message: str) -> None:
    with pytest.raises(MtlbenchError, match=message):
        resolved(tmp_path, f"scenario={{kind: data_option, {section}}}")


def test_conditioning_shows_the_goal_of_the_next_step_in_its_own_place() -> None:
    shown, hidden = (
        Sequences(streams=["patrol"], demonstrations=1, conditioning=how).trajectories("patrol", "train").observations
        for how in ("next", "all")
    )
    assert (shown[:, :-2] == hidden[:, :-2]).all() and (hidden[:, -2:] == 0).all()
    goals, done = shown[:, 9:15].reshape(-1, 3, 2), (3 * shown[:, 15]).round().astype(int)
    assert done.tolist() == sorted(done) and set(done) == {0, 1, 2}
    assert all((row[-2:] == goals[i, done[i]]).all() for i, row in enumerate(shown))
