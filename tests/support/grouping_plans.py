"""Drives the plans of task grouping with invented results, under the rules of the bench."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mtlbench import registry
from mtlbench.runs.plan import Ending
from mtlbench.runs.spec import RunSpec
from mtlbench.testing import ToyData, toy_spec

TASKS = list(ToyData.TASKS)
"""``kind`` and ``shape`` score higher is better, ``far`` and ``mean`` lower is better."""

Invent = Callable[[RunSpec], dict[str, Any]]


def spec(name: str, tasks: list[str] = TASKS, seed: int = 0, **arguments: Any) -> RunSpec:
    """Returns a line of a suite with all defaults written out."""
    return toy_spec(name, tasks=tasks, seed=seed).with_method(registry.record(name, **arguments))


def expected(line: RunSpec, *group: str, train: str = "uniform") -> str:
    """Returns the id of the run that another row of the suite trains for a group."""
    name = "single_task" if len(group) == 1 else train
    return line.with_method(registry.record(name)).with_tasks(*group).run_id


def begin(line: RunSpec) -> Any:
    """Returns the plan of a line."""
    cls: Any = registry.find(line.method["path"])
    return cls.plan(line)


def drive(line: RunSpec, invent: Invent) -> tuple[list[list[RunSpec]], Ending]:
    """Follows a plan to its end; returns its stages and what it returned."""
    plan, results, stages, known = begin(line), None, [], set()
    while True:
        try:
            runs = plan.send(results)
        except StopIteration as end:
            assert isinstance(end.value, Ending)
            assert set(end.value.serving) == set(line.tasks) and set(end.value.serving.values()) <= known
            return stages, end.value
        ids = [run.run_id for run in runs]
        assert ids and len(set(ids)) == len(ids) and not known & set(ids), "each run once"
        known |= set(ids)
        stages.append(runs)
        results = [invent(run) for run in runs]


def scored(value: Callable[[tuple[str, ...], str], float], *, split: str = "validation", other: float = 0.5) -> Invent:
    """Returns results whose scores are ``value(group, task)`` on one split and ``other`` on the other one."""

    def invent(run: RunSpec) -> dict[str, Any]:
        group = tuple(run.tasks)
        first = {task: run.tasks[task]["protocols"][0]["id"] for task in group}
        found = {task: {first[task]: value(group, task)} for task in group}
        flat = {task: {first[task]: other} for task in group}
        return {"validation": flat, "scores": flat, split: found, "summary": {}}

    return invent


def gaining(gain: Callable[[tuple[str, ...], str], float], **more: Any) -> Invent:
    """Returns results with these relative gains over a score of 2 alone, in the direction of each task."""
    sign = {
        task: 1 if description["protocols"][0]["higher_is_better"] else -1
        for task, description in spec("uniform").tasks.items()
    }
    return scored(lambda group, task: 2 * (1 + sign[task] * (gain(group, task) if len(group) > 1 else 0)), **more)


def told(affinity: list[list[float | None]]) -> Invent:
    """Returns results in which only the run on all tasks reports an affinity table."""
    return lambda run: {"summary": {"affinity": affinity} if len(run.tasks) == len(affinity) else {}}
