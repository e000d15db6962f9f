"""Plain records of the groups of tasks that plans found, shared by every view."""

from __future__ import annotations

from dataclasses import dataclass

from mtlbench.report.statistics import Estimate, spearman


@dataclass(frozen=True)
class GroupQuality:
    """Predicted and measured quality of training a group of tasks together.

    Attributes:
        group: At least two tasks.
        predicted: Mean over its tasks of what the plan predicted, on the plan's own scale; higher is better.
        measured: Mean over its tasks of the relative gain over single-task training with the same seed, in per cent,
            on the reported split.
    """

    group: tuple[str, ...]
    predicted: float
    measured: float


@dataclass(frozen=True)
class FoundGroups:
    """The grouping that one seed of a row found. Times in seconds; unknown ones are ``None``.

    Attributes:
        seed: Seed.
        groups: Tasks of every network.
        serves: Index of the network that serves a task.
        search_seconds: Training time of the runs that only search for groups.
        group_seconds: Of all other runs of the row.
        exhaustive_seconds: Of one run for every subset of tasks, if the study has all of them.
        qualities: Groups with both a prediction and a measurement.
    """

    seed: int
    groups: tuple[tuple[str, ...], ...]
    serves: dict[str, int]
    search_seconds: float | None
    group_seconds: float | None
    exhaustive_seconds: float | None
    qualities: tuple[GroupQuality, ...] = ()

    @property
    def total_seconds(self) -> float | None:
        """Training time of all runs of the row."""
        known = self.search_seconds is not None and self.group_seconds is not None
        return (self.search_seconds or 0) + (self.group_seconds or 0) if known else None

    @property
    def share(self) -> float | None:
        """Total time in per cent of the time for all subsets."""
        total, every = self.total_seconds, self.exhaustive_seconds
        return 100 * total / every if total is not None and every else None

    @property
    def correlation(self) -> float | None:
        """Spearman's rank correlation of predicted and measured quality."""
        return spearman([q.predicted for q in self.qualities], [q.measured for q in self.qualities])


@dataclass(frozen=True)
class Affinity:
    """How much tasks help each other, as a plan measured it.

    Attributes:
        what: Name of the quantity.
        tasks: T names.
        values: (T, T), recipient by source, mean over seeds; ``None`` where no seed has a value.
        seeds: How many.
    """

    what: str
    tasks: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    seeds: int


@dataclass(frozen=True)
class Grouping:
    """Groups of tasks that the plan of one row found.

    Attributes:
        label: Row.
        found: One entry per seed whose plan has ended.
        correlation: Rank correlation of predicted and measured quality over seeds, ``None`` without any.
        share: Total time in per cent of the time for all subsets, over seeds.
        affinity: Its table of affinities, if it has one.
        notes: Remarks of the plan.
    """

    label: str
    found: tuple[FoundGroups, ...]
    correlation: Estimate | None
    share: Estimate | None
    affinity: Affinity | None
    notes: tuple[str, ...]
