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
from mtlbench.study.search import Search
from mtlbench.study.validation import MethodEntry
from mtlbench.suite import ModelSection, Suite


def specs_of(
    suite: Suite, methods: Sequence[MethodEntry], parts: Callable[[ModelSection], Mapping[str, Any]]
) -> list[RunSpec]:
    """Returns one run per method and seed in the order of the suite, last the floor unless it has ``floor: false``.

    Args:
        suite: The suite.
        methods: Its methods.
        parts: Returns the fields of a run that depend on neither method nor seed, given its model.
    """
    own = any(FLOOR in (entry.label, entry.record["name"]) for entry in methods)
    floor = [MethodEntry(FLOOR, registry.record(FLOOR), suite.model)] if suite.floor and not own else []
    return [
        RunSpec(suite=suite.name, label=entry.label, seed=seed, method=entry.record, **parts(entry.model))
        for entry in (*methods, *floor)
        for seed in (*suite.seeds, *suite.confirm)
    ]


def is_floor(spec: RunSpec) -> bool:
    """Whether a run predicts without the image."""
    return bool(spec.method["name"] == FLOOR)


def cases_of(
    specs: Sequence[RunSpec], tasks: Mapping[str, Any], scenario: Scenario | None, search: Search | None = None
) -> list[Case]:
    """Returns the cases of runs, in their order.

    Args:
        specs: Runs of methods and seeds.
        tasks: Tasks by name.
        scenario: What varies besides method and seed.
        search: Equal tuning of every row but the floor, which has nothing to tune.

    Raises:
        SuiteError: If nothing is left to run.
    """
    fitted = [name for name, task in tasks.items() if task.blind() is not None]
    cases: list[Case] = []
    for spec in specs:
        if is_floor(spec):
            cases += _floor(spec, fitted, scenario)
        elif search:
            cases.append(search.case(spec))
        else:
            cases += scenario.cases(spec) if scenario else [Case(spec)]
    if not cases:
        raise SuiteError(
            f"The floor needs a task whose kind defines one (`Task.blind`). Found {', '.join(tasks)}, which have none. "
            "Name other methods, too."
        )
    return cases


def _floor(spec: RunSpec, fitted: Sequence[str], scenario: Scenario | None) -> Iterator[Case]:
    """Yields the cases of the floor, on the tasks whose kind has one; none where the scenario is about another."""
    if not fitted or scenario and scenario.task and scenario.task not in fitted:
        return
    spec = spec.with_tasks(*fitted)
    yield from scenario.floor_cases(spec) if scenario else [Case(spec)]
