"""Tasks that arrive one after another: which runs are trained, on which labels, and what earlier tasks lose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlbench import registry
from mtlbench.errors import MethodError
from mtlbench.method import MTLMethod
from mtlbench.runs.plan import Ending, foreseen
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


def own_plan(spec: Any) -> Any:
    """Returns the plan of a run's method."""
    cls = registry.find(spec.method["path"])
    return (cls if issubclass(cls, MTLMethod) else MTLMethod).plan(spec)


def test_a_student_keeps_its_teachers_and_gets_one_of_the_new_task(mine: Path) -> None:
    runs, serving = foreseen(resolved(mine, "methods=[kd_mtl]", ARRIVE).cases[2].begin(own_plan))
    assert [(run.method["name"], list(run.tasks)) for run in runs] == [
        ("single_task", ["left"]), ("single_task", ["right"]), ("kd_mtl", ["left", "right"]),
        ("single_task", ["segments"]), ("kd_mtl", ["left", "right", "segments"]),
        ("single_task", ["ink"]), ("kd_mtl", ["left", "right", "segments", "ink"]),
    ]  # fmt: skip
    first, second, last = (run for run in runs if run.method["name"] == "kd_mtl")
    alone = {next(iter(run.tasks)): run for run in runs if run.method["name"] == "single_task"}
    assert last.sources == {task: {"run": run.run_id, "hash": run.hash} for task, run in alone.items()}
    assert [alone[task].trainer["steps"] for task in ("left", "segments", "ink")] == [3, 2, 2]
    assert second.start and second.start["run"] == first.run_id and set(serving.values()) == {last.run_id}


def test_a_further_sub_task_has_the_base_of_the_others(mine: Path) -> None:
    runs, serving = foreseen(resolved(mine, "methods=[computation_sharing]", ARRIVE).cases[2].begin(own_plan))
    base, *others = runs
    assert [list(run.tasks) for run in runs] == [["left"], ["right"], ["segments"], ["ink"]]
    assert all(run.sources == {"base": {"run": base.run_id, "hash": base.hash}} for run in others)
    assert serving == {next(iter(run.tasks)): run.run_id for run in runs}


def test_a_plan_that_adds_tasks_is_followed(mine: Path) -> None:
    def followed(case: Any) -> list[list[Any]]:
        plan, results, found = case.begin(own_plan), None, []
        while True:
            try:
                runs = plan.send(results)
            except StopIteration:
                return found
            found.append(runs)
            scores = {task: {run.tasks[task]["protocols"][0]["id"]: 0.5} for run in runs for task in run.tasks}
            results = [{"validation": scores, "summary": {"components": {"embedding": 9, "head": 1}}}] * len(runs)

    cases = resolved(mine, "methods=[{name: mu2net, children: 2, generations: 1}]", ARRIVE).cases
    before, after = followed(cases[0]), followed(cases[2])
    assert [list(runs[0].tasks) for runs in after] == [["left"], ["right"], ["segments"], ["ink"]]
    assert all(run.method["arguments"].get("trained") is not None for runs in after for run in runs)
    assert after[:2] == before and not any(run.start or run.data.get("labels") for runs in after for run in runs)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_merged_networks_are_refused_before_anything_is_trained(mine: Path, method: str) -> None:
    with pytest.raises(MethodError, match=rf"{method} makes its network from finished runs.*Leave it out"):
        resolved(mine, f"methods=[uniform, {method}]", ARRIVE)
    resolved(mine, f"methods=[{method}]", "scenario={}")


def trained_case(case: Any, root: Path) -> dict[str, str]:
    """Trains the runs of a case one after another; returns who serves which task."""
    plan, results = case.begin(own_plan), None
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


def test_distillation_goes_on_for_tasks_whose_labels_are_gone(mine: Path) -> None:
    case = resolved(mine, "methods=[kd_mtl]", "scenario={kind: incremental, task: segments, steps: 2}").cases[1]
    run = trained_case(case, mine / "results")["left"]
    rows = [json.loads(line) for line in (mine / "results" / run / "metrics.jsonl").read_text().splitlines()]
    assert all(rows[0][f"distillation/{task}"] > 0 for task in ("left", "right", "segments"))
    assert [key for key in rows[0] if key.startswith("loss/")] == ["loss/segments"]


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_pruned_trunk_keeps_its_masks(mine: Path, mode: str) -> None:
    method = f"methods=[{{name: disparse, mode: {mode}, batches: 8}}]"
    cases = resolved(mine, method, "scenario={kind: incremental, task: segments, steps: 2}").cases
    first, last = (
        load_run(mine / "results" / trained_case(c, mine / "results")["left"], allow=["tests"]) for c in cases
    )
    before, after = first.method.network, last.method.network
    assert before.density() < 0.5 and all(torch.equal(before.mask(n), after.mask(n)) for n in before.prunable)
    assert all(after.mask(name).all() for name in after.of("segments"))


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
