"""Compares methods over several studies: mean ranks, with the statistics of Demšar (2006)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtlbench.errors import StoreError
from mtlbench.report.model import Leaderboard
from mtlbench.report.statistics import ALPHA, LEVEL

DRAWS = 10_000
"""Bootstrap samples behind the interval of a mean rank."""

Deltas = Mapping[str, Mapping[int, float]]
"""Label -> seed -> Δm."""


@dataclass(frozen=True)
class MeanRank:
    """One method over all studies.

    Attributes:
        label: Row.
        deltas: Mean Δm in each study.
        ranks: Rank in each study among the methods of all studies; ties share the mean of their places.
        mean: Mean rank, 1 is best.
        low: Lower end of its bootstrap interval.
        high: Upper end.
    """

    label: str
    deltas: tuple[float, ...]
    ranks: tuple[float, ...]
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Across:
    """Methods over several studies.

    Attributes:
        studies: Names, in the order of the columns.
        rows: Best mean rank first.
        left_out: Methods that only some of the studies have.
        friedman: p-value of the Friedman test that all methods are equal; ``None`` with fewer than three methods.
        critical: Difference in mean rank that the Nemenyi test calls significant at 5 %.
    """

    studies: tuple[str, ...]
    rows: tuple[MeanRank, ...]
    left_out: tuple[str, ...]
    friedman: float | None
    critical: float

    @property
    def tied(self) -> tuple[tuple[str, ...], ...]:
        """The largest groups of methods whose mean ranks lie within the critical difference, best group first."""
        groups: list[tuple[str, ...]] = []
        for i, first in enumerate(self.rows):
            group = tuple(row.label for row in self.rows[i:] if row.mean - first.mean < self.critical)
            if len(group) > 1 and not any(set(group) <= set(other) for other in groups):
                groups.append(group)
        return tuple(groups)


def compare_studies(boards: Sequence[Leaderboard], names: Sequence[str]) -> Across:
    """Ranks the methods that all studies have.

    The interval of a mean rank comes from a bootstrap over studies, and over seeds within a study; the methods of one
    study share the resampled seeds, because they are paired.

    Raises:
        StoreError: If fewer than two studies or two common methods with Δm are given.
    """
    if len(boards) < 2:
        raise StoreError(f"Mean ranks need at least two studies. Found {len(boards)}. Name more results folders.")
    tables = [{row.label: row.deltas for row in board.rows if row.deltas and not row.floor} for board in boards]
    every = list(dict.fromkeys(label for table in tables for label in table))
    common = [label for label in every if all(label in table for table in tables)]
    if len(common) < 2:
        raise StoreError(
            "A comparison over studies needs at least two methods with Δm in each of them. Found in all: "
            f"{', '.join(common) or 'none'}. Run the same methods in each suite."
        )
    means = np.array([[_mean(table[label]) for label in common] for table in tables])
    ranks = _ranks(means)
    draws = _bootstrap(tables, common)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    rows = [
        MeanRank(label, tuple(means[:, i].tolist()), tuple(ranks[:, i].tolist()), float(ranks[:, i].mean()), lo, hi)
        for i, (label, lo, hi) in enumerate(zip(common, low.tolist(), high.tolist(), strict=True))
    ]
    return Across(
        studies=tuple(names),
        rows=tuple(sorted(rows, key=lambda row: (row.mean, row.label))),
        left_out=tuple(label for label in every if label not in common),
        friedman=_friedman(ranks),
        critical=critical_difference(len(common), len(boards)),
    )


def critical_difference(methods: int, studies: int) -> float:
    """Returns the difference in mean rank that the Nemenyi test calls significant at 5 % (Demšar 2006, §3.2.2)."""
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - ALPHA, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * studies))


def _friedman(ranks: NDArray[np.float64]) -> float | None:
    """Returns the p-value of the Friedman test in the F form of Iman and Davenport, from (studies, methods) ranks."""
    from scipy.special import fdtrc

    studies, methods = ranks.shape
    if methods < 3:
        return None
    spread = np.sum((ranks.mean(0) - (methods + 1) / 2) ** 2)
    chi2 = 12 * studies / (methods * (methods + 1)) * float(spread)
    rest = studies * (methods - 1) - chi2
    if rest <= 1e-9:  # All studies agree.
        return 0.0
    return float(fdtrc(methods - 1, (methods - 1) * (studies - 1), (studies - 1) * chi2 / rest))


def _bootstrap(tables: Sequence[Deltas], labels: Sequence[str]) -> NDArray[np.float64]:
    """Returns mean ranks (draws, methods)."""
    generator = np.random.default_rng(0)
    ranks = []
    for table in tables:
        seeds = sorted(set.intersection(*(set(table[label]) for label in labels)))
        values = np.array([[table[label][seed] for seed in seeds] for label in labels])
        chosen = generator.integers(0, len(seeds), (DRAWS, len(seeds)))
        ranks.append(_ranks(values[:, chosen].mean(-1).T))
    stacked = np.stack(ranks)
    studies = generator.integers(0, len(tables), (len(tables), DRAWS))
    mean: NDArray[np.float64] = np.mean([stacked[row, np.arange(DRAWS)] for row in studies], axis=0)
    return mean


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the ranks of (N, methods) values within each line; the highest is 1, and ties share their mean."""
    above = (values[:, None, :] > values[:, :, None]).sum(-1)
    equal = (values[:, None, :] == values[:, :, None]).sum(-1)
    return above + (equal + 1) / 2


def _mean(by_seed: Mapping[int, float]) -> float:
    return math.fsum(by_seed.values()) / len(by_seed)
