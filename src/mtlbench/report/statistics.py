"""Statistics over seeds: means and intervals, paired differences, Holm correction, rank correlation.

Only `scipy.special` is used: `scipy.stats` alone takes a second to import, longer than the whole table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95
"""Confidence level of every interval."""

ALPHA = 0.05
"""A difference is called significant below this p-value."""

POWER = 0.8
"""Probability with which a difference of the smallest detectable size becomes significant."""

_MOST_SEEDS = 100
"""Numbers of seeds beyond this are not proposed."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its uncertainty.

    Attributes:
        mean: Mean.
        n: Number of values.
        std: Sample standard deviation (ddof = 1), ``None`` for one value.
        low: Lower end of the t interval, ``None`` for one value.
        high: Upper end.
    """

    mean: float
    n: int
    std: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """A difference paired by seed.

    Attributes:
        estimate: Mean difference over the common seeds, its spread and its interval.
        p: Two-sided p-value of the paired t test, ``None`` for one seed.
    """

    estimate: Estimate
    p: float | None

    @property
    def significant(self) -> bool | None:
        """Whether the difference exceeds the noise; ``None`` when one seed gives no measure of noise."""
        return None if self.p is None else self.p < ALPHA


def estimate(values: Iterable[float]) -> Estimate:
    """Returns mean, sample standard deviation and 95 % t interval.

    Raises:
        ValueError: If there is no value.
    """
    sample = list(values)
    n = len(sample)
    if n == 0:
        raise ValueError("An estimate needs at least one value.")
    mean = math.fsum(sample) / n
    if n == 1:
        return Estimate(mean, n)
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in sample) / (n - 1))
    half = _t_quantile(n - 1) * std / math.sqrt(n)
    return Estimate(mean, n, std, mean - half, mean + half)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """Returns the difference a - b over their common seeds, or ``None`` when they have none in common."""
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return None
    result = estimate(a[s] - b[s] for s in seeds)
    return Difference(result, _p_value(result))


def detectable(std: float, n: int) -> float:
    """Returns the smallest true difference that a paired t test on n seeds finds with probability `POWER`.

    Args:
        std: Standard deviation of the paired difference, in the unit of the answer.
        n: Number of seeds, at least 2.
    """
    low, high = 0.0, 1.0
    while _power(high, n) < POWER:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, n) < POWER else (low, middle)
    return high * std


def seeds_to_detect(std: float, difference: float) -> int | None:
    """Returns the number of seeds that make a difference detectable, see `detectable`; ``None`` above 100."""
    effect = difference / std if std else math.inf
    return next((n for n in range(2, _MOST_SEEDS + 1) if effect == math.inf or _power(effect, n) >= POWER), None)


def pooled_std(differences: Iterable[Difference]) -> float | None:
    """Returns the root mean square of the standard deviations of several differences; ``None`` without any."""
    variances = [d.estimate.std**2 for d in differences if d.estimate.std is not None]
    return math.sqrt(math.fsum(variances) / len(variances)) if variances else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for their number by Holm's step-down rule, in the order given."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Returns the rank correlation of two equally long samples; tied values share the mean of their ranks.

    ``None`` if undefined: for fewer than three pairs, or if all values of a sample are equal.
    """
    ranks = [_ranks(values) for values in (a, b)]
    middle = (len(a) + 1) / 2
    x, y = ([rank - middle for rank in sample] for sample in ranks)
    spread = math.sqrt(math.fsum(v * v for v in x) * math.fsum(v * v for v in y))
    if len(a) < 3 or spread == 0:
        return None
    return math.fsum(u * v for u, v in zip(x, y, strict=True)) / spread


def _ranks(values: Sequence[float]) -> list[float]:
    """Returns places from 1; n values may be compared pair by pair, since a study has some hundred groups at most."""
    return [1 + sum(other < v for other in values) + (sum(other == v for other in values) - 1) / 2 for v in values]


def _power(effect: float, n: int) -> float:
    """Returns the probability that a two-sided t test on n pairs rejects, for a true mean of ``effect`` deviations."""
    from scipy.special import nctdtr

    shift, limit = effect * math.sqrt(n), _t_quantile(n - 1)
    return float(1 - nctdtr(n - 1, shift, limit) + nctdtr(n - 1, shift, -limit))


def _t_quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + LEVEL / 2))


def _p_value(difference: Estimate) -> float | None:
    if difference.std is None:
        return None
    if difference.std == 0:
        return 1.0 if difference.mean == 0 else 0.0
    from scipy.special import stdtr

    t = difference.mean / (difference.std / math.sqrt(difference.n))
    return float(2 * stdtr(difference.n - 1, -abs(t)))
