"""What rules that look ahead share: relative decrease of losses, and means over pairs of tasks that outlive a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer
from mtlbench.errors import MethodError


def relative_decrease(before: Tensor, after: Tensor) -> Tensor:
    """Returns (before - after) / |before|, which is 1 - after / before for positive losses.

    Not finite where ``before`` is 0, or one of the two is not finite.
    """
    return (before - after) / before.abs()


class Probe(Balancer):
    """Base of measuring runs: training is the plain sum, and every few steps pairs of tasks are looked at.

    The summary has ``affinity``, rows of recipients and columns of sources in the order of the run's tasks, each the
    mean over the steps that had a value (None without any), and ``probes``, how many these were.

    Args:
        every: Optimiser steps from one measurement to the next, at least 1; the first is at step 0.

    Raises:
        MethodError: If ``every`` is out of range.
    """

    totals: Tensor
    counts: Tensor

    def __init__(self, every: int = 10):
        super().__init__()
        if every < 1:
            raise MethodError(f"{type(self).__name__}: every must be at least 1. Found {every}.")
        self.every = every

    def configure(self, tasks: int) -> None:
        """Creates sums and counts (T, T)."""
        super().configure(tasks)
        self.register_buffer("totals", torch.zeros(tasks, tasks))
        self.register_buffer("counts", torch.zeros(tasks, tasks, dtype=torch.int64))

    def due(self, step: int) -> bool:
        """Returns whether pairs are measured in this step."""
        return step % self.every == 0

    def note(self, values: Tensor, active: Sequence[int]) -> None:
        """Adds the values (A, A) of one step, [recipient][source]; those that are not finite are not counted."""
        place = torch.tensor(active, device=self.totals.device)
        values = values.to(self.totals)
        known = values.isfinite()
        self.totals[place[:, None], place] += torch.where(known, values, 0.0)
        self.counts[place[:, None], place] += known

    def summary(self) -> dict[str, Any]:
        """Returns mean values and their numbers; see the class."""
        totals, counts = self.totals.double().tolist(), self.counts.tolist()
        means = [[t / n if n else None for t, n in zip(*row, strict=True)] for row in zip(totals, counts, strict=True)]
        return {"affinity": means, "probes": counts}
