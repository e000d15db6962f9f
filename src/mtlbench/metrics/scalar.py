"""Metrics for one value per image, and the mean of a task's own loss."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torchmetrics import Metric

from mtlbench.metrics.protocol import higher, lower


class _HasLoss(Protocol):
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor: ...
    def count(self, target: Tensor) -> int: ...


class _Decodes(Protocol):
    def decode(self, prediction: Tensor) -> Tensor: ...


class RunningMean(Metric):
    """Mean from a sum and a count, accumulated over batches and ranks."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, values: Tensor) -> None:
        """Adds values (N,)."""
        self.total += values.double().sum()
        self.count += values.numel()

    def mean(self) -> Tensor:
        """Returns total / count, NaN for an empty set."""
        return self.total / self.count


class Accuracy(RunningMean):
    """Share of images whose highest score is the labelled class.

    Args:
        ignore: Label of an unlabelled image.
    """

    protocols = higher("accuracy@1")

    def __init__(self, *, ignore: int = -1):
        super().__init__()
        self.ignore = ignore

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts (B, C) scores against int (B,) labels."""
        valid = target != self.ignore
        highest, guess = prediction.max(1)
        self.add(torch.where(highest.isnan(), torch.nan, (guess == target).double())[valid])

    def compute(self) -> dict[str, float]:
        """Returns the share in [0, 1]; NaN without labels, or if a labelled prediction was NaN."""
        return {"accuracy@1": float(self.mean())}


class SquaredError(RunningMean):
    """Root mean square error of one number per image; NaN labels do not count.

    Args:
        task: Its ``decode`` turns raw predictions (B, 1) into numbers (B,) in the unit of the target.
        unit: Unit of the target.
    """

    def __init__(self, task: _Decodes, *, unit: str = ""):
        super().__init__()
        self.task = task
        self.protocols = lower("rmse@1", unit=unit)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds (B, 1) predictions against float (B,) labels."""
        self.add(_misses(self.task, prediction, target).square())

    def compute(self) -> dict[str, float]:
        """Returns the error in the unit of the target."""
        return {"rmse@1": float(self.mean().sqrt())}


class AbsoluteError(RunningMean):
    """Mean absolute error of one number per sample; NaN labels do not count.

    Args:
        task: As for `SquaredError`.
        unit: As for `SquaredError`.
    """

    def __init__(self, task: _Decodes, *, unit: str = ""):
        super().__init__()
        self.task = task
        self.protocols = lower("mae@1", unit=unit)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds (B, 1) predictions against float (B,) labels."""
        self.add(_misses(self.task, prediction, target).abs())

    def compute(self) -> dict[str, float]:
        """Returns the error in the unit of the target."""
        return {"mae@1": float(self.mean())}


def _misses(task: _Decodes, prediction: Tensor, target: Tensor) -> Tensor:
    """Returns how far the predictions of labelled samples are off, in float64."""
    return (task.decode(prediction) - target)[~target.isnan()].double()


class MeanLoss(RunningMean):
    """A task's own loss, averaged over all valid elements of the set.

    Args:
        task: Gives ``loss`` (a sum) and ``count``.
        protocol: Key of the computed value.
    """

    def __init__(self, task: _HasLoss, *, protocol: str):
        super().__init__()
        self.task, self.protocol = task, protocol
        self.protocols = lower(protocol)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds the loss of one batch."""
        self.total += self.task.loss(prediction, target).double()
        self.count += self.task.count(target)

    def compute(self) -> dict[str, float]:
        """Returns the mean loss."""
        return {self.protocol: float(self.mean())}
