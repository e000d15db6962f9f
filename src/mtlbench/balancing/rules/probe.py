"""Shared parts of rules that look ahead: the relative decrease of losses, and means over pairs of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer
from mtlbench.errors import MethodError


def relative_decrease(before: Tensor, after: Tensor) -> Tensor:
    """Returns (before - after) / |before|, which equals 1 - after / before for positive losses.

    The result is not finite where ``before`` is 0 or either input is not finite.
    """
    return (before - after) / before.abs()


class Probe(Balancer):
    """Base of measuring runs, which train on the plain sum of the losses and measure pairs of tasks every few steps.

    The summary holds ``affinity``, with a row per recipient and a column per source in the order of the run's tasks.
    Each entry is the mean over the steps that had a value, or None if there was none. ``probes`` holds the number of
    these steps per pair.

    Args:
        every: Optimiser steps between measurements, at least 1. The first measurement is at step 0.

    Raises:
        MethodError: If ``every`` is out of range.
    """

    totals: Tensor
    counts: Tensor

    def __init__(self, every: int = 10):
        super().__init__()
        if every < 1:
            raise MethodError(f"{type(self).__name__}: every must be at least 1. Found {every}. Use 1 for every step.")
        self.every = every

    def configure(self, tasks: int) -> None:
        """Creates the sums and counts of all pairs, (T, T) each."""
        super().configure(tasks)
        self.register_buffer("totals", torch.zeros(tasks, tasks))
        self.register_buffer("counts", torch.zeros(tasks, tasks, dtype=torch.int64))

    def due(self, step: int) -> bool:
        """Returns whether this step measures the pairs."""
        return step % self.every == 0

    def note(self, values: Tensor, active: Sequence[int]) -> None:
        """Adds the values (A, A) of one step, indexed [recipient][source]. Values that are not finite are ignored."""
        place = torch.tensor(active, device=self.totals.device)
        values = values.to(self.totals)
        known = values.isfinite()
        self.totals[place[:, None], place] += torch.where(known, values, 0.0)
        self.counts[place[:, None], place] += known

    def summary(self) -> dict[str, Any]:
        """Returns the means and the number of values behind each; see the class."""
        totals, counts = self.totals.double().tolist(), self.counts.tolist()
        means = [[t / n if n else None for t, n in zip(*row, strict=True)] for row in zip(totals, counts, strict=True)]
        return {"affinity": means, "probes": counts}
