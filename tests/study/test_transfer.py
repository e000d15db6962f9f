"""Transfer from groups of tasks: which runs are trained, on which tasks, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtlbench.bench.scheduler import Bench
from mtlbench.errors import MtlbenchError
from mtlbench.report import load
from mtlbench.runs.plan import foreseen, one_run
from mtlbench.runs.spec import RunSpec
from tests.support.command_line import write_suite
from tests.support.instant import Instant
from tests.support.instant import resolved as digits
from tests.support.scenario_suite import SUITE, data_of, resolved

TASKS = "{left: {}, right: {}, sum: {}, ink: {}, segments: {}}"
GROUPS = "groups: {classes: [left, right], numbers: [sum, ink], maps: [segments]}"
TRANSFER = f"scenario={{kind: transfer, {GROUPS}, targets: [ink, right]}}"
COMBINATIONS = {
    "classes": {"left"},
    "numbers": {"sum"},
    "maps": {"segments"},
    "classes + numbers": {"left", "sum"},
    "classes + maps": {"left", "segments"},
    "numbers + maps": {"sum", "segments"},
    "classes + numbers + maps": {"left", "sum", "segments"},
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_suite(tmp_path, "mine", SUITE.replace("{left: {}, right: {}, ink: {}}", TASKS))
    return tmp_path


def test_every_combination_of_groups_is_trained_without_any_target(mine: Path) -> None:
    none, *cases = resolved(mine, "methods=[uniform]", TRANSFER).cases
    assert {case.condition for case in cases} == set(COMBINATIONS) and len(cases) == 2**3 - 1
    for case in cases:
        (first, *second), serving = foreseen(case.begin(one_run))
        assert set(first.tasks) == COMBINATIONS[case.condition] and first.start is None
        assert list(first.tasks) == [
            name for name in ("left", "right", "sum", "ink", "segments") if name in first.tasks
        ]
        samples = data_of(first).training_samples()
        assert set(samples[0]["targets"]) == set(first.tasks), "no label of a target"
        assert [list(run.tasks) for run in second] == [["ink"], ["right"]]
        assert all(
            run.start == {"run": first.run_id, "hash": first.hash, "related": None, "freeze": False} for run in second
        )
        assert serving == {"ink": second[0].run_id, "right": second[1].run_id}
    alone, _ = foreseen(none.begin(one_run))
    assert none.condition == "no source tasks" and [run.start for run in alone] == [None, None]


def test_second_runs_have_labels_steps_and_a_rate_of_their_own(mine: Path) -> None:
    more = ("scenario.examples=8", "scenario.steps=2", "scenario.lr=0.5", "optimiser.warmup=3", "selection=best")
    case = resolved(mine, "methods=[uniform]", TRANSFER, *more, "trainer.evaluate_every=3").cases[1]
    (first, *second), _ = foreseen(case.begin(one_run))
    assert (first.trainer["steps"], first.optimiser["lr"], first.trainer["selection"]) == (3, 0.001, "best")
    for run in second:
        (task,) = run.tasks
        assert run.data["labels"] == {task: {"count": 8}} and run.trainer["selection"] == "last"
        assert (run.trainer["steps"], run.trainer["evaluate_every"]) == (2, 2)
        assert (run.optimiser["lr"], run.optimiser["warmup"]) == (0.5, 2)
    plain, _ = foreseen(resolved(mine, "methods=[uniform]", TRANSFER).cases[0].begin(one_run))
    without = resolved(mine, "methods=[uniform]", "scenario={}").members[0].with_tasks("ink")
    assert plain[0].run_id == without.run_id, "a single-task run of the suite, if nothing is set"


class Counting(Instant):
    """Counts the runs that it starts."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.begun: list[str] = []

    def start(self, spec: RunSpec) -> None:
        self.begun.append(spec.run_id)
        super().start(spec)


def test_a_resumed_study_trains_the_missing_cells_alone(tmp_path: Path) -> None:
    def begun(groups: str, targets: str) -> list[str]:
        scenario = f"scenario={{kind: transfer, groups: {groups}, targets: {targets}}}"
        study = digits("methods=[uniform]", "floor=false", scenario, f"tasks={TASKS}", "seeds=[0]")
        executor = Counting(tmp_path)
        Bench(tmp_path, study, executor).run()
        return executor.begun

    both = "{classes: [left, right], numbers: [sum, ink], maps: [segments]}"
    assert len(begun(both, "[ink, right]")) == 2 + 7 * 3
    assert begun(both, "[ink, right]") == []
    board: Any = load(tmp_path)[1]
    assert [line.groups for line in board.transfer.combinations] == ["no source tasks", *COMBINATIONS]
    assert all(len(line.scores) == 2 for line in board.transfer.combinations)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("targets: [ink]", "needs the option 'groups'"),
        (f"{GROUPS}, targets: [ink], task: ink", "Unknown option 'task'"),
        (f"{GROUPS}, targets: []", "targets must be a list of tasks"),
        (f"{GROUPS}, targets: [inc]", "Unknown task 'inc'.*'ink'"),
        ("groups: [left], targets: [ink]", "groups maps each group to a list of tasks; found"),
        ("groups: {a: left}, targets: [ink]", "groups maps each group to a list of tasks; found a: 'left'"),
        ("groups: {a: [lefd]}, targets: [ink]", "Unknown task 'lefd'"),
        ("groups: {a + b: [left]}, targets: [ink]", "without '\\+'"),
        ("groups: {a: [left, sum], b: [sum]}, targets: [ink]", "sum is in a and in b"),
        (f"{GROUPS}, targets: [segments]", "maps has segments. Add one"),
        ("groups: {a: [left], b: [sum]}, targets: [ink]", "right, segments is neither. Leave it out of tasks"),
        (f"{GROUPS}, targets: [ink], examples: 0", "examples must be a whole number of at least 1.*found 0"),
        (f"{GROUPS}, targets: [ink], examples: 41", "41 of 40 training images"),
        (f"{GROUPS}, targets: [ink], lr: 0", "lr must be above 0.*found 0"),
    ],
)
def test_what_makes_no_study_of_transfer_is_refused(mine: Path, section: str, message: str) -> None:
    with pytest.raises(MtlbenchError, match=message):
        resolved(mine, f"scenario={{kind: transfer, {section}}}")


def test_too_many_groups_are_refused_before_they_are_combined(mine: Path) -> None:
    groups = ", ".join(f"g{number}: [left]" for number in range(40))
    with pytest.raises(MtlbenchError, match="at most 6 groups; found 40. Join some"):
        resolved(mine, f"scenario={{kind: transfer, groups: {{{groups}}}, targets: [ink]}}")


@pytest.mark.parametrize("method", ["single_task", "kd_mtl", "hoa"])
def test_methods_with_several_runs_are_refused_before_anything_is_trained(mine: Path, method: str) -> None:
    with pytest.raises(MtlbenchError, match=f"{method} trains several runs. Leave it out of methods"):
        resolved(mine, f"methods=[uniform, {method}]", TRANSFER)
