"""Task losses over all ranks: sums and counts in, means out, exact however labels are spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mtlbench import distributed


@dataclass(frozen=True)
class ReducedLosses:
    """Loss sums and label counts of all ranks.

    Attributes:
        totals: (T,) sums over ranks, detached.
        counts: Valid elements per task over ranks; on the host, so that nothing waits for the device.
        scales: Static scale per task.
    """

    totals: Tensor
    counts: tuple[int, ...]
    scales: tuple[float, ...]

    @property
    def active(self) -> tuple[int, ...]:
        """Indices of the tasks with a label on some rank."""
        return tuple(i for i, count in enumerate(self.counts) if count)

    @cached_property
    def factors(self) -> Tensor:
        """(T,) factors that turn a sum into its part of the scaled mean."""
        values = [scale / max(1, count) for scale, count in zip(self.scales, self.counts, strict=True)]
        return distributed.sent(values, self.totals)

    @cached_property
    def losses(self) -> Tensor:
        """(A,) scaled mean losses of the active tasks."""
        scaled = self.totals * self.factors
        if len(self.active) == len(self.counts):
            return scaled
        return scaled[distributed.sent(self.active, scaled, torch.int64)]

    def means(self) -> Tensor:
        """Returns (T,) unscaled means, NaN for absent tasks, for the log."""
        counts = [count or float("nan") for count in self.counts]
        return self.totals / distributed.sent(counts, self.totals)

    def __add__(self, other: ReducedLosses) -> ReducedLosses:
        """Joins two micro-batches of one step."""
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return ReducedLosses(self.totals + other.totals, counts, self.scales)


def reduce_losses(sums: Tensor, counts: Sequence[int], scales: Sequence[float]) -> ReducedLosses:
    """Adds this rank's loss sums (T,) and counts to those of all others."""
    totals = distributed.sum_(sums.detach().clone())
    return ReducedLosses(totals, tuple(distributed.sum_counts(counts, sums.device)), tuple(scales))
