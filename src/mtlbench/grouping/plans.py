"""`Grouping`, the part that all plans of task grouping share: it turns groups into runs and results into tables."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mtlbench import registry
from mtlbench.errors import MethodError
from mtlbench.grouping.assignment import Cover, Group, Table, best_cover, subsets
from mtlbench.grouping.quality import Pairs, from_pairs, relative_gains
from mtlbench.runs.plan import Ending, Plan, Result
from mtlbench.runs.spec import RunSpec

ALONE = -1e6
"""Score of a task alone if only pairs are scored. It makes any group better than a task alone."""

MOST_PREDICTIONS = 127
"""Largest number of predictions in a record: the number of non-empty subsets of seven tasks."""

Measured = Generator[list[RunSpec], list[Result], dict[Group, Result]]


@dataclass
class Grouping:
    """The grouping of a run's tasks, from the search to the networks that serve them.

    Attributes:
        spec: The run that the suite names.
        networks: Largest number of networks.
        alone: Method of a run on one task, see `registry.record`.
        together: Method of a run on two or more tasks.
        searched: Runs of the search, by id.
        small: Changes of the section ``model`` that make a small network of one task; None if there are none.
    """

    spec: RunSpec
    networks: int
    alone: Mapping[str, Any]
    together: Mapping[str, Any]
    searched: dict[str, RunSpec] = field(default_factory=dict)
    small: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, spec: RunSpec, networks: int, train: str) -> Grouping:
        """Returns the grouping of a suite's entry, with at most as many networks as tasks.

        Raises:
            MethodError: If the tasks cannot be grouped as the entry asks.
        """
        check_networks(networks)
        name = spec.method["name"]
        if len(spec.tasks) < 2:
            raise MethodError(
                f"Grouping needs at least two tasks. {name} found {', '.join(spec.tasks) or 'none'}. Use single_task."
            )
        if spec.method.get("balancer"):
            rule = spec.method["balancer"]["name"]
            raise MethodError(
                f"{name} trains its groups with the method or balancer that `train` names. It was given the balancer "
                f"{rule}. Write train: {rule} instead."
            )
        _check_train(train)
        return cls(spec, min(networks, len(spec.tasks)), registry.record("single_task"), registry.record(train))

    @property
    def tasks(self) -> list[str]:
        """All tasks, in the order of the suite."""
        return list(self.spec.tasks)

    def run(self, group: Group) -> RunSpec:
        """Returns the run of a group."""
        return self.spec.with_method(self.alone if len(group) == 1 else self.together).with_tasks(*group)

    def small_run(self, task: str) -> RunSpec:
        """Returns the run of a small network of one task."""
        run = self.run((task,))
        return replace(run, model={**run.model, **(self.small or {})})

    def probe(self, name: str, **arguments: Any) -> Generator[list[RunSpec], list[Result], Result]:
        """Trains all tasks together with a measuring method and returns the result."""
        run = self.spec.with_method(registry.record(name, **arguments))
        self.searched[run.run_id] = run
        (result,) = yield [run]
        return result

    def measure(self, groups: Sequence[Group]) -> Measured:
        """Trains groups and returns their results."""
        results = yield from self._search([self.run(group) for group in groups])
        return dict(zip(groups, results, strict=True))

    def _search(self, runs: list[RunSpec]) -> Generator[list[RunSpec], list[Result], list[Result]]:
        self.searched |= {run.run_id: run for run in runs}
        return (yield runs)

    def by_affinity(self, name: str, what: str, **arguments: Any) -> Plan:
        """Groups by the affinity of pairs, measured in one run. A task's score is the mean over the rest of its group.

        Args:
            name: Balancer whose ``summary`` holds ``affinity``, indexed [recipient][source].
            what: Description of the table for the report.
            **arguments: Its hyper-parameters.
        """
        groups = subsets(self.tasks)
        result = yield from self.probe(name, **arguments)
        pairs = checked_pairs(self.tasks, (result.get("summary") or {}).get("affinity"), name)
        table = from_pairs(groups, pairs, ALONE)
        cover = best_cover(self.tasks, table, self.networks)
        # A task alone has an artificial score, which is no prediction.
        known = {group: values if len(group) > 1 else {} for group, values in table.items()}
        return (yield from self.end(cover, known, pairs, what))

    def by_all(self, split: str, single_cost: float = 1.0) -> Plan:
        """Groups by the measured gains of all subsets, each of which is trained.

        Args:
            split: ``"validation"``, or ``"scores"`` for the reported scores.
            single_cost: Cost of a network of one task, or of a small one if there are any; see `best_cover`.
        """
        groups = subsets(self.tasks)
        singles: list[Group] = [(task,) for task in self.tasks]
        small = [self.small_run(task) for task in self.tasks] if self.small else []
        found = yield from self._search([*map(self.run, groups), *small])
        results = dict(zip(groups, found, strict=False))
        table, reported, note = self.gains(results, split)
        reduced = dict(zip(singles, found[len(groups) :], strict=False))
        alone = self._small_gains(results, reduced, "scores" if reported else "validation") if self.small else None
        cover = best_cover(self.tasks, table, self.networks, single_cost, alone)
        # A reported score does not predict itself.
        return (yield from self.end(cover, {} if reported else table, note=note))

    def gains(self, results: Mapping[Group, Result], split: str) -> tuple[Table, bool, str]:
        """Returns the relative gains over single tasks, whether they use the reported scores, and a note about it."""
        if split == "scores":
            note = "Upper bound: chosen by the scores that are reported."
        elif all(result.get("validation") for result in results.values()):
            note = ""
        else:
            split, note = "scores", "The data has no further split: chosen by the scores that are reported."
        table = relative_gains(self.spec.tasks, {group: result[split] for group, result in results.items()})
        return table, split == "scores", note

    def _small_gains(
        self, results: Mapping[Group, Result], reduced: Mapping[Group, Result], split: str
    ) -> dict[str, float]:
        """Returns the gain of each task's small network over its full one, which is usually negative."""
        full = {group: results[group][split] for group in reduced}
        table = relative_gains(self.spec.tasks, {group: result[split] for group, result in reduced.items()}, full)
        return {task: gain for row in table.values() for task, gain in row.items()}

    def end(
        self,
        cover: Cover,
        predicted: Table | None = None,
        pairs: Pairs | None = None,
        what: str = "",
        note: str = "",
    ) -> Plan:
        """Trains the chosen groups that the search did not train, and returns the run that serves each task."""
        runs = [
            self.small_run(group[0]) if len(group) == 1 and group[0] in cover.small else self.run(group)
            for group in cover.groups
        ]
        missing = [run for run in runs if run.run_id not in self.searched]
        if missing:
            yield missing
        serving = {task: runs[index].run_id for task, index in cover.serves.items()}
        final = {run.run_id for run in runs}
        record = {
            "kind": "grouping",
            "groups": [list(group) for group in cover.groups],
            "serves": cover.serves,
            "networks": self.networks,
            "search_runs": [name for name in self.searched if name not in final],
            "predicted": _capped(predicted or {}, cover.groups),
            "note": note,
        }
        if self.small:
            # The report must not mistake these runs for full networks of the same task.
            record |= {"small": sorted(cover.small), "small_runs": [self.small_run(t).run_id for t in self.tasks]}
        if pairs:
            rows = [[pairs[a, b] for b in self.tasks] for a in self.tasks]
            values = [[value if math.isfinite(value) else None for value in row] for row in rows]
            record["affinity"] = {"tasks": self.tasks, "values": values, "what": what}
        return Ending(serving, record)


def check_networks(networks: int) -> None:
    """Raises a MethodError if the number of networks is below 1."""
    if not networks >= 1:
        raise MethodError(
            f"networks of a grouping method must be a whole number of at least 1. Found {networks}. Use 1 to train "
            "all tasks together."
        )


def _check_train(name: str) -> None:
    from mtlbench.method import MTLMethod

    try:
        method, own = registry.find(name), MTLMethod.plan
    except MethodError as error:
        raise MethodError(f"train of a grouping method: {error}") from error
    if issubclass(method, MTLMethod) and method.plan.__code__ is not own.__code__:
        raise MethodError(
            f"train must name a method or balancer that trains in one run. {name} needs several. Use uniform."
        )


def checked_pairs(tasks: Sequence[str], affinity: Any, name: str) -> Pairs:
    """Returns an affinity table by pair, including the diagonal.

    Args:
        tasks: Names of the tasks.
        affinity: The table of a run's summary, indexed [recipient][source], with None where nothing was measured.
        name: Balancer that has measured it.

    Raises:
        MethodError: It is no table of these tasks, or a pair of different tasks has no finite value.
    """
    size = len(tasks)
    if not isinstance(affinity, list) or [len(row) for row in affinity] != [size] * size:
        raise MethodError(
            f"The summary of {name} must hold an affinity table of {size} × {size} tasks. Found {affinity!r}. Return "
            "one row per recipient from summary()."
        )
    pairs = {
        (a, b): math.nan if v is None else float(v)
        for a, row in zip(tasks, affinity, strict=True)
        for b, v in zip(tasks, row, strict=True)
    }
    unknown = [f"{b} → {a}" for (a, b), value in pairs.items() if a != b and not math.isfinite(value)]
    if unknown:
        raise MethodError(
            f"Every pair of tasks needs a finite affinity. {name} has none for {', '.join(unknown)}: no measured step "
            "had labels of both tasks, or a loss diverged. Train longer, or lower `every` if the method has it."
        )
    return pairs


def _capped(predicted: Table, chosen: Sequence[Group]) -> list[dict[str, Any]]:
    """Selects the predictions for a record: those of the chosen groups, then those of the smallest groups."""
    order = [*(group for group in chosen if group in predicted), *(g for g in predicted if g not in set(chosen))]
    kept = set(order[:MOST_PREDICTIONS])
    return [
        {"group": list(group), "values": {task: value for task, value in values.items() if math.isfinite(value)}}
        for group, values in predicted.items()
        if group in kept
    ]
