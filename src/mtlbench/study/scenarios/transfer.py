"""Transfer: every combination of groups of source tasks is trained, then each target starts from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import Any

from mtlbench import registry
from mtlbench.errors import MethodError, unknown_name
from mtlbench.runs.plan import Case, MethodPlan, Plan
from mtlbench.runs.spec import RunSpec
from mtlbench.study.scenarios.base import (
    Fault,
    Scenario,
    Scope,
    distinct,
    followed,
    is_count,
    is_positive,
    lasting,
)

NONE = "no source tasks"
"""The condition that the others are compared with."""

MOST_GROUPS = 6
"""Most groups, of which there are 63 combinations."""


@dataclass(frozen=True, kw_only=True)
class Transfer(Scenario):
    """Which groups of tasks help a target that is trained after them (protocol of arXiv:2204.11117).

    For each of the 2^G - 1 combinations of G groups, a first run trains the tasks of its groups. For each target, a
    second run starts from the weights of the first, with a fresh head, and trains the target alone. No target is
    trained in a first run, even if a group lists it: the group that lists a target is the target's own. A condition
    without source tasks trains the same second runs from the suite's initial weights.

    All first runs have the suite's steps, however many tasks they train. The last step of a second run counts.

    Attributes:
        groups: Tasks of every group.
        targets: Tasks that second runs train.
        examples: Labelled samples of the target in a second run; None for all.
        steps: Steps of a second run; None for the suite's own.
        lr: Learning rate of a second run; None for the suite's own.
    """

    task: str = field(default="", init=False)
    groups: Mapping[str, Sequence[str]]
    targets: Sequence[str]
    examples: int | None = None
    steps: int | None = None
    lr: float | None = None

    def faults(self, scope: Scope) -> Iterator[Fault]:
        """Yields the faults of the options."""
        yield from distinct("targets", self.targets, lambda name: isinstance(name, str), "tasks")
        yield from self._unknown("targets", self.targets, scope)
        yield from self._faults_of_groups(scope)
        for key in ("examples", "steps"):
            value = getattr(self, key)
            if value is not None and not is_count(value):
                yield key, f"{key} must be a whole number of at least 1, or null; found {value!r}."
        if self.lr is not None and not is_positive(self.lr):
            yield "lr", f"lr must be above 0, or null; found {self.lr!r}."

    def _faults_of_groups(self, scope: Scope) -> Iterator[Fault]:
        rule = "groups maps each group to a list of tasks"
        if not isinstance(self.groups, Mapping) or not self.groups:
            yield "groups", f"{rule}; found {self.groups!r}."
            return
        if len(self.groups) > MOST_GROUPS:
            yield "groups", f"There are at most {MOST_GROUPS} groups; found {len(self.groups)}. Join some of them."
        owner: dict[str, str] = {}
        for group, tasks in self.groups.items():
            if not isinstance(group, str) or "+" in group:
                yield "groups", f"A group has a name without '+', which joins names; found {group!r}."
            if not isinstance(tasks, (list, tuple)) or not all(isinstance(name, str) for name in tasks):
                yield "groups", f"{rule}; found {group}: {tasks!r}."
                continue
            yield from self._unknown("groups", tasks, scope)
            for name in tasks:
                if name in owner:
                    yield "groups", f"A task is in one group; {name} is in {owner[name]} and in {group}."
                owner[name] = str(group)
            if not set(tasks) - set(_listed(self.targets)):
                found = ", ".join(tasks) or "none"
                yield "groups", f"A group needs a task that is no target; {group} has {found}. Add one."
        if idle := [name for name in scope.tasks if name not in owner and name not in _listed(self.targets)]:
            fault = "is neither. Leave it out of tasks."
            yield "groups", f"Every task is a target or in a group; {', '.join(idle)} {fault}"

    def _unknown(self, key: str, names: Any, scope: Scope) -> Iterator[Fault]:
        for name in _listed(names):
            if isinstance(name, str) and name not in scope.tasks:
                yield key, unknown_name("task", name, scope.tasks)

    def images_needed(self) -> int:
        """Returns the number of labelled samples of a second run; 0 for all."""
        return self.examples or 0

    def cases(self, spec: RunSpec) -> Iterator[Case]:
        """Yields one case without source tasks, and one per combination of groups.

        Raises:
            MethodError: If the method trains source tasks in several runs.
        """
        _check_method(spec)
        for column, groups in self._combinations.items():
            yield Case(self._scored(spec, self.targets), column, partial(self._plan, spec, groups))

    def floor_cases(self, spec: RunSpec) -> Iterator[Case]:
        """Yields the same targets under every condition: without the input, there is nothing to start from."""
        if targets := [name for name in self.targets if name in spec.tasks]:
            yield from (Case(self._scored(spec, targets), column) for column in self._combinations)

    def described(self) -> Mapping[str, Any]:
        """Returns the columns: the mean drop of the targets after every combination, against no source tasks."""
        every = self._combinations
        return {
            "columns": [column for column in every if column != NONE],
            "base": NONE,
            "ignored": self._sources(self.groups),
            "of": "the targets",
            "transfer": {
                "tasks": {column: len(self._sources(groups)) for column, groups in every.items()},
                "all": _column(tuple(self.groups)),
                "own": {t: group for t in self.targets for group, tasks in self.groups.items() if t in tasks},
            },
            "text": "a first run trains the tasks of some groups ("
            + "; ".join(f"{group}: {', '.join(self._sources([group]))}" for group in self.groups)
            + f"), then each of {', '.join(self.targets)} is trained alone from its weights"
            + (f", on {self.examples} examples" if self.examples else "")
            + (f", for {self.steps} steps" if self.steps else "")
            + (f", at learning rate {self.lr:g}" if self.lr else "")
            + "; drop: the mean relative loss of the targets against the same runs from the suite's initial weights, "
            "so that a negative drop is a gain",
        }

    @property
    def _combinations(self) -> dict[str, tuple[str, ...]]:
        """The groups of every condition, small combinations first."""
        names = list(self.groups)
        every = [some for size in range(1, len(names) + 1) for some in combinations(names, size)]
        return {NONE: (), **{_column(groups): groups for groups in every}}

    def _sources(self, groups: Sequence[str] | Mapping[str, Any]) -> list[str]:
        """Returns the tasks of some groups without the targets."""
        return [name for group in groups for name in self.groups[group] if name not in self.targets]

    def _scored(self, spec: RunSpec, targets: Sequence[str]) -> RunSpec:
        """Returns the run on some targets, as a second run trains each."""
        labels = {name: {"count": self.examples} for name in targets} if self.examples else {}
        run = lasting(spec.with_tasks(*targets), self.steps).with_labels(labels)
        optimiser = run.optimiser if self.lr is None else {**run.optimiser, "lr": self.lr}
        return replace(run, optimiser=optimiser, trainer={**run.trainer, "selection": "last"})

    def _plan(self, spec: RunSpec, groups: Sequence[str], method_plan: MethodPlan) -> Plan:
        """Trains the tasks of the groups, then every target from their weights."""
        start = None
        if groups:
            wanted = self._sources(groups)
            first = spec.with_tasks(*(name for name in spec.tasks if name in wanted))
            _, found = yield from followed(method_plan(first))
            ((run, _),) = found.values()
            start = {"run": run.run_id, "hash": run.hash, "related": None, "freeze": False}
        second = {target: replace(self._scored(spec, [target]), start=start) for target in self.targets}
        yield list(second.values())
        return {target: run.run_id for target, run in second.items()}


def _check_method(spec: RunSpec) -> None:
    from mtlbench.method import MTLMethod

    cls: Any = registry.find(spec.method["path"])
    if issubclass(cls, MTLMethod) and cls.plan.__code__ is not MTLMethod.plan.__code__:
        raise MethodError(
            f"In the scenario transfer, one run trains all source tasks, and targets start from it. {spec.label}: "
            f"{spec.method['name']} trains several runs. Leave it out of methods; the condition {NONE!r} is "
            "single-task training."
        )


def _column(groups: Sequence[str]) -> str:
    return " + ".join(groups)


def _listed(values: Any) -> Sequence[Any]:
    return values if isinstance(values, (list, tuple)) else ()
