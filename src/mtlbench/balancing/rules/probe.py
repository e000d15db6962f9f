"""Shared parts of rules that look ahead: the step that they try, the relative decrease of losses, means over pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Balancer, Context
from mtlbench.errors import MethodError, unknown_name

PREVIEWS = ("gradient", "optimiser")
"""Steps that a rule may try: one of plain gradient descent, as the papers define it, or one of the run's optimiser."""


def checked_preview(rule: str, preview: str) -> str:
    """Returns the name of a preview.

    Raises:
        MethodError: If there is none of that name.
    """
    if preview not in PREVIEWS:
        raise MethodError(f"{rule}: {unknown_name('preview', preview, PREVIEWS)}")
    return preview


def trial_step(ctx: Context, gradient: Tensor, preview: str) -> Tensor:
    """Returns the change (P,) of the shared parameters that a rule tries for a gradient (P,).

    An optimiser's step holds its momentum, which all tasks have in common. In the middle of a run with AdamW, that is
    most of the step, so the previews of all tasks resemble each other.

    Args:
        ctx: Context of the step.
        gradient: Of one task or of several.
        preview: One of `PREVIEWS`.
    """
    return ctx.descent(gradient) if preview == "gradient" else ctx.preview(gradient)


def relative_decrease(before: Tensor, after: Tensor) -> Tensor:
    """Returns (before - after) / |before|, which equals 1 - after / before for positive losses.

    The result is not finite where ``before`` is 0 or either input is not finite.
    """
    return (before - after) / before.abs()


class PairMeans(nn.Module):
    """Means of a quantity of pairs of tasks over the steps of a run. Checkpoints carry them, being buffers."""

    totals: Tensor
    counts: Tensor

    def begin_pairs(self, tasks: int) -> None:
        """Creates the sums and counts of all pairs, (T, T) each."""
        self.register_buffer("totals", torch.zeros(tasks, tasks))
        self.register_buffer("counts", torch.zeros(tasks, tasks, dtype=torch.int64))

    def note(self, values: Tensor, recipients: Sequence[int], sources: Sequence[int] | None = None) -> None:
        """Adds the values (R, S) of one step, indexed [recipient][source]. Values that are not finite are ignored.

        Args:
            values: One per pair.
            recipients: Indices of the tasks in rows.
            sources: Those in columns; those in rows if not given.
        """
        rows = torch.tensor(recipients, device=self.totals.device)
        columns = torch.tensor(recipients if sources is None else sources, device=self.totals.device)
        values = values.to(self.totals)
        known = values.isfinite()
        self.totals[rows[:, None], columns] += torch.where(known, values, 0.0)
        self.counts[rows[:, None], columns] += known

    def pairs(self) -> dict[str, Any]:
        """Returns ``affinity``, the means, and ``probes``, the number of values behind each.

        Both have a row per recipient and a column per source in the order of the run's tasks. A mean is None if there
        was no value.
        """
        totals, counts = self.totals.double().tolist(), self.counts.tolist()
        means = [[t / n if n else None for t, n in zip(*row, strict=True)] for row in zip(totals, counts, strict=True)]
        return {"affinity": means, "probes": counts}


class Probe(PairMeans, Balancer):
    """Base of measuring runs, which train on the plain sum of the losses and measure pairs of tasks every few steps.

    The summary is that of `PairMeans`: each entry is the mean over the measured steps that had a value.

    Args:
        every: Optimiser steps between measurements, at least 1. The first measurement is at step 0.

    Raises:
        MethodError: If ``every`` is out of range.
    """

    def __init__(self, every: int = 10):
        super().__init__()
        if every < 1:
            raise MethodError(f"{type(self).__name__}: every must be at least 1. Found {every}. Use 1 for every step.")
        self.every = every

    def configure(self, tasks: int) -> None:
        """Creates the sums and counts of all pairs."""
        super().configure(tasks)
        self.begin_pairs(tasks)

    def due(self, step: int) -> bool:
        """Returns whether this step measures the pairs."""
        return step % self.every == 0

    def summary(self) -> dict[str, Any]:
        """Returns the means and the number of values behind each; see the class."""
        return self.pairs()
