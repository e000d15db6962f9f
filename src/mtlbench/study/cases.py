"""The lines of a study: one case per method, seed and condition, and the floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mtlbench import registry
from mtlbench.errors import SuiteError
from mtlbench.registry import FLOOR
from mtlbench.runs.plan import Case
from mtlbench.runs.spec import RunSpec
from mtlbench.study.scenarios import Scenario
from mtlbench.study.validation import MethodEntry
from mtlbench.suite import ModelSection, Suite


def cases_of(
    suite: Suite,
    methods: Sequence[MethodEntry],
    parts: Callable[[ModelSection], Mapping[str, Any]],
    tasks: Mapping[str, Any],
    scenario: Scenario | None,
) -> list[Case]:
    """Returns the cases in the order of the suite, last those of the floor unless the suite has ``floor: false``.

    Args:
        suite: The suite.
        methods: Its methods.
        parts: Returns the fields of a run that depend on neither method nor seed, given its model.
        tasks: Tasks by name.
        scenario: What varies besides method and seed.

    Raises:
        SuiteError: If nothing is left to run.
    """
    own = any(FLOOR in (entry.label, entry.record["name"]) for entry in methods)
    floor = [MethodEntry(FLOOR, registry.record(FLOOR), suite.model)] if suite.floor and not own else []
    fitted = [name for name, task in tasks.items() if task.blind() is not None]
    cases: list[Case] = []
    for entry in (*methods, *floor):
        shared, is_floor = parts(entry.model), entry.record["name"] == FLOOR
        for seed in (*suite.seeds, *suite.confirm):
            spec = RunSpec(suite=suite.name, label=entry.label, seed=seed, method=entry.record, **shared)
            cases += _floor(spec, fitted, scenario) if is_floor else scenario.cases(spec) if scenario else [Case(spec)]
    if not cases:
        raise SuiteError(
            f"The floor needs a task whose kind defines one (`Task.blind`). Found {', '.join(tasks)}, which have none. "
            "Name other methods, too."
        )
    return cases


def _floor(spec: RunSpec, fitted: Sequence[str], scenario: Scenario | None) -> Iterator[Case]:
    """Yields the cases of the floor, on the tasks whose kind has one; none where the scenario is about another."""
    if not fitted or scenario and scenario.task not in fitted:
        return
    spec = spec.with_tasks(*fitted)
    yield from scenario.floor_cases(spec) if scenario else [Case(spec)]
