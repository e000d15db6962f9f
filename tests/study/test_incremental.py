"""Tasks that arrive one after another: which runs are trained, on which labels, and what earlier tasks lose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtlbench import registry
from mtlbench.method import MTLMethod
from mtlbench.runs.plan import Ending
from mtlbench.runs.store import RunFolder
from mtlbench.study import scenarios
from mtlbench.study.scenarios.base import Scope
from mtlbench.training.load import load_run
from mtlbench.training.run import train
from tests.support.command_line import write_suite
from tests.support.scenario_suite import SUITE, data_of, plan_of, resolved

ARRIVE = "scenario={kind: incremental, task: segments, then: [ink], steps: 2}"
FOUR = SUITE.replace("{left: {}, right: {}, ink: {}}", "{left: {}, right: {}, ink: {}, segments: {}}")
COLUMNS = ["before any arrival", "+ segments", "+ ink"]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # The data leaves a word for every training in the current folder.
    write_suite(tmp_path, "mine", FOUR)
    return tmp_path


def stages(case: Any) -> tuple[list[Any], dict[str, str]]:
    """Follows the plan of a case with empty results; returns its runs and who serves which task."""
    plan, runs = plan_of(case.begin), []
    stage = next(plan)
    while True:
        runs += stage
        try:
            stage = plan.send([{} for _ in stage])
        except StopIteration as end:
            return runs, dict(Ending.of(end.value).serving)


def test_each_arrival_starts_from_the_run_before_on_its_own_labels(mine: Path) -> None:
    cases = resolved(mine, "methods=[uniform]", ARRIVE).cases
    assert [case.condition for case in cases] == COLUMNS
    (first, second, third), serving = stages(cases[2])
    assert stages(cases[0])[0] == [first] and stages(cases[1])[0] == [first, second]
    assert [list(run.tasks) for run in (first, second, third)] == [
        ["left", "right"], ["left", "right", "segments"], ["left", "right", "segments", "ink"]
    ]  # fmt: skip
    assert first.start is None and [run.trainer["steps"] for run in (first, second, third)] == [3, 2, 2]
    for before, run, new in ((first, second, "segments"), (second, third, "ink")):
        assert run.start == {"run": before.run_id, "hash": before.hash, "related": None, "freeze": False}
        assert run.data["labels"] == {task: {"count": 0} for task in run.tasks if task != new}
        samples = data_of(run).training_samples()
        assert len(samples) == 40 and all(set(samples[i]["targets"]) == {new} for i in range(40))
    assert serving == dict.fromkeys(third.tasks, third.run_id)


def test_a_network_per_task_is_joined_by_one_more(mine: Path) -> None:
    cases = resolved(mine, "methods=[single_task]", ARRIVE).cases
    runs, serving = stages(cases[2])
    assert [list(run.tasks) for run in runs] == [["left"], ["right"], ["segments"], ["ink"]]
    assert serving == {next(iter(run.tasks)): run.run_id for run in runs} and not any(run.start for run in runs)


def trained_case(case: Any, root: Path) -> dict[str, str]:
    """Trains the runs of a case one after another; returns who serves which task."""

    def of(spec: Any) -> Any:
        cls = registry.find(spec.method["path"])
        return (cls if issubclass(cls, MTLMethod) else MTLMethod).plan(spec)

    plan, results = case.begin(of), None
    while True:
        try:
            runs = plan.send(results)
        except StopIteration as end:
            return dict(Ending.of(end.value).serving)
        for run in runs:
            folder = RunFolder(root, run.run_id)
            assert folder.result() or (folder.claim(run) and train(run, folder))
        results = [RunFolder(root, run.run_id).outcome() for run in runs]


def test_rcm_forgets_nothing_and_a_shared_trunk_does(mine: Path) -> None:
    image = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
    for method, same in (("rcm", True), ("uniform", False)):
        cases = resolved(mine, f"methods=[{method}]", ARRIVE).cases
        found = []
        for case in cases:
            serving = trained_case(case, mine / "results")
            network = load_run(mine / "results" / serving["left"], allow=["tests"]).method
            with torch.no_grad():
                found.append(network(image, ["left", "right"]))
        for later in found[1:]:
            assert all(torch.equal(found[0][task], later[task]) == same for task in ("left", "right"))


@pytest.mark.parametrize(("options", "message"), [
    ({"then": "ink"}, "then must be a list"), ({"then": ["inc"]}, "ink"), ({"then": ["segments"]}, "arrives once"),
    ({"then": ["ink", "right"]}, "At least two tasks"), ({"steps": 0}, "steps must be"),
    ({"task": "sgments"}, "segments"),
])  # fmt: skip
def test_mistakes_are_told(options: dict[str, Any], message: str) -> None:
    scope = Scope(("left", "right", "ink", "segments"), ("uniform",), ("train", "val"))
    found, faults = scenarios.read({"kind": "incremental", "task": "segments", **options}, scope)
    assert found is None and len(faults) == 1 and message in faults[0][1]


def test_cells_are_the_drops_of_the_tasks_that_were_there(mine: Path) -> None:
    about = resolved(mine, "methods=[uniform]", ARRIVE).record["scenario"]
    assert about["columns"] == COLUMNS[1:] and about["base"] == COLUMNS[0] and "target" not in about
    assert about["ignored"] == ["segments", "ink"] and "segments, then ink" in about["text"]
