"""Plain records of the scenario `transfer`, a part of its table."""

from __future__ import annotations

from dataclasses import dataclass

from mtlbench.report.statistics import Difference, Estimate


@dataclass(frozen=True)
class Combination:
    """What one row reaches after training some groups of source tasks.

    Attributes:
        label: Row.
        groups: Name of the combination.
        tasks: Number of source tasks.
        scores: Score of every target that has one.
        gain: Mean relative gain of the targets over no source tasks, in per cent.
    """

    label: str
    groups: str
    tasks: int
    scores: dict[str, Estimate]
    gain: Estimate | None


@dataclass(frozen=True)
class Trend:
    """How the gain of one row depends on the source tasks, for one target or for the mean over all.

    Attributes:
        label: Row.
        target: Target; ``""`` for the mean over all.
        slope: Change of the gain per source task, in points of per cent: the least-squares line over combinations.
        gap: Gain after all groups minus that after the target's own group, paired by seed.
    """

    label: str
    target: str
    slope: Estimate | None
    gap: Difference | None


@dataclass(frozen=True)
class Transfer:
    """Scores and statistics of all rows.

    Attributes:
        targets: Heading of every target's score, by target.
        combinations: Every row and combination.
        trends: Every row and target, the mean over targets last.
    """

    targets: dict[str, str]
    combinations: tuple[Combination, ...]
    trends: tuple[Trend, ...]
