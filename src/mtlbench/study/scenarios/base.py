"""The base of every scenario: its options are the fields of a dataclass, its cases the rows of a study."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mtlbench.errors import unknown_name
from mtlbench.runs.plan import Case, Ending, Plan, Result, Serving
from mtlbench.runs.spec import RunSpec

Fault = tuple[str, str]
"""The option at fault (``""`` for all), and what is wrong with it."""


Followed = Generator[list[RunSpec], list[Result], tuple[Serving, dict[str, tuple[RunSpec, Result]]]]


@dataclass(frozen=True)
class Scope:
    """What a scenario must fit.

    Attributes:
        tasks: Tasks of the suite.
        labels: What its methods may be called: their labels, and the names of all methods.
        splits: Splits of its data.
    """

    tasks: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]


@dataclass(frozen=True)
class Scenario(ABC):
    """Expands one method with one seed into the cases that a study compares.

    Attributes:
        task: The task that the scenario is about.
    """

    task: str

    @abstractmethod
    def cases(self, spec: RunSpec) -> Iterator[Case]:
        """Yields the cases of one method and seed.

        Args:
            spec: Its run on all tasks, with the suite's own settings.
        """

    def floor_cases(self, spec: RunSpec) -> Iterator[Case]:
        """Yields the cases of the prediction without the image, fitted on the labels that each condition allows.

        Args:
            spec: Its run on all tasks, with the suite's own settings.
        """
        yield from self.cases(spec)

    @abstractmethod
    def described(self) -> Mapping[str, Any]:
        """Returns what the report shows.

        ``columns`` are conditions and ``text`` says what was done. A cell holds the score of the task ``target``; or,
        without one, the mean drop of all tasks but ``ignored`` against the condition ``base``.
        """

    def faults(self, scope: Scope) -> Iterator[Fault]:
        """Yields the faults of the options."""
        if self.task not in scope.tasks:
            yield "task", unknown_name("task", str(self.task), scope.tasks)

    def images_needed(self) -> int:
        """Returns how many training images the scenario asks for by number; 0 if it does not."""
        return 0


def followed(plan: Plan) -> Followed:
    """Follows a plan to its end and returns which run serves which task, and its runs with their results by id."""
    found: dict[str, tuple[RunSpec, Result]] = {}
    runs = next(plan)
    while True:
        results = yield runs
        found |= {run.run_id: (run, result) for run, result in zip(runs, results, strict=True)}
        try:
            runs = plan.send(results)
        except StopIteration as end:
            return Ending.of(end.value).serving, found


def lasting(spec: RunSpec, steps: int | None) -> RunSpec:
    """Returns a run with another number of steps, and at most the same share of them as warm-up; None changes nothing.

    Args:
        spec: The run.
        steps: Its steps.
    """
    if steps is None:
        return spec
    warmup = round(spec.optimiser["warmup"] * min(1, steps / spec.trainer["steps"]))
    every = min(spec.trainer["evaluate_every"], steps)
    return replace(
        spec,
        optimiser={**spec.optimiser, "warmup": warmup},
        trainer={**spec.trainer, "steps": steps, "evaluate_every": every},
    )


def distinct(name: str, values: Any, fits: Any, rule: str) -> Iterator[Fault]:
    """Yields the fault of an option that must be a list of distinct values, at least one, each of which fits."""
    if not isinstance(values, (list, tuple)) or not values or not all(fits(value) for value in values):
        yield name, f"{name} must be a list of {rule}; found {values!r}."
    elif len(set(values)) != len(values):
        yield name, f"{name} must be distinct; found {values!r}."


def is_count(value: Any) -> bool:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
