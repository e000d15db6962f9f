"""Metrics of one value for an image, and the mean of a task's own loss."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torchmetrics import Metric


class _HasLoss(Protocol):
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor: ...
    def count(self, target: Tensor) -> int: ...


class _Mean(Metric):
    """A sum and a count that add over batches and ranks."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def mean(self) -> Tensor:
        """Returns total / count, NaN for an empty set."""
        return self.total / self.count


class Accuracy(_Mean):
    """Share of images whose highest score is the labelled class.

    Args:
        ignore: Label of an unlabelled image.
    """

    def __init__(self, *, ignore: int = -1):
        super().__init__()
        self.ignore = ignore

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts (B, C) scores against int (B,) labels."""
        valid = target != self.ignore
        self.total += ((prediction.argmax(1) == target) & valid).sum()
        self.count += valid.sum()

    def compute(self) -> dict[str, float]:
        """Returns the share in [0, 1]."""
        return {"accuracy@1": float(self.mean())}


class SquaredError(_Mean):
    """Root mean square error of one number for an image; NaN labels do not count."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds (B, 1) predictions against float (B,) labels."""
        valid = ~target.isnan()
        self.total += (prediction[:, 0] - target)[valid].double().square().sum()
        self.count += valid.sum()

    def compute(self) -> dict[str, float]:
        """Returns the error in the unit of the target."""
        return {"rmse@1": float(self.mean().sqrt())}


class MeanLoss(_Mean):
    """A task's own loss, averaged over all valid elements of the set.

    Args:
        task: Gives ``loss`` (a sum) and ``count``.
        protocol: Key of the computed value.
    """

    def __init__(self, task: _HasLoss, *, protocol: str):
        super().__init__()
        self.task, self.protocol = task, protocol

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds the loss of one batch."""
        self.total += self.task.loss(prediction, target).double()
        self.count += self.task.count(target)

    def compute(self) -> dict[str, float]:
        """Returns the mean loss."""
        return {self.protocol: float(self.mean())}
