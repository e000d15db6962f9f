"""What all verdicts are made of: statements, corrected comparisons, and lists in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mtlbench.report import formatting
from mtlbench.report.statistics import ALPHA, Difference, holm, paired

SHORT = 8
"""Longest list of names in a sentence; the tables have all of them."""

BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Statement:
    """A part of the verdict.

    Attributes:
        topic: What it is about, a few words.
        text: One or more whole sentences.
    """

    topic: str
    text: str


@dataclass(frozen=True)
class Pair:
    """A row compared with a reference, paired by seed.

    Attributes:
        label: Row.
        difference: Row minus reference; positive if the row is better.
        p: p-value corrected by Holm over all rows; ``None`` for one common seed.
    """

    label: str
    difference: Difference
    p: float | None

    @property
    def told(self) -> bool:
        """Whether the two differ beyond noise."""
        return self.p is not None and self.p < ALPHA

    @property
    def ahead(self) -> bool:
        """Whether the row is better beyond noise."""
        return self.told and self.difference.estimate.mean > 0

    @property
    def behind(self) -> bool:
        """Whether the row is worse beyond noise."""
        return self.told and self.difference.estimate.mean < 0


def compared(values: Mapping[str, BySeed], reference: str) -> list[Pair]:
    """Compares all rows with a reference, in their order; Holm corrects over all of them.

    Args:
        values: By label and seed; higher is better.
        reference: Label of the reference.
    """
    found = [
        (label, difference)
        for label, by_seed in values.items()
        if label != reference and (difference := paired(by_seed, values[reference]))
    ]
    adjusted = iter(holm([d.p for _, d in found if d.p is not None]))
    return [Pair(label, d, None if d.p is None else next(adjusted)) for label, d in found]


def listed(labels: Iterable[str], last: str = "and") -> str:
    """Returns names as a list in words; a long one ends with the number of names left out."""
    names = list(labels)
    if len(names) > SHORT + 1:
        names = [*names[:SHORT], f"{len(names) - SHORT} more"]
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def with_interval(pair: Pair) -> str:
    """Returns a name with its difference and interval."""
    found = pair.difference.estimate
    return f"{pair.label} ({formatting.number(found.mean, 2, sign=True)}, {formatting.interval(found)})"


def are(names: Sequence[str], one: str = "is", many: str = "are") -> str:
    """Returns the verb that agrees with a list of names."""
    return one if len(names) == 1 else many
