"""Mean intersection over union from one confusion matrix, summed over the data set and all ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from mtlbench.metrics.protocol import higher


class MeanIoU(Metric):
    """Mean IoU over the classes that occur in prediction or truth.

    Args:
        classes: Number of classes C.
        ignore: Label that does not count.
        protocol: Key of the computed value.
        binary: Predictions are one logit (B, 1, H, W), positive above probability 0.5, and targets floats.
    """

    full_state_update = False
    confusion: Tensor
    broken: Tensor

    def __init__(self, classes: int, *, ignore: int = 255, protocol: str = "semseg_miou@1", binary: bool = False):
        super().__init__()
        self.classes, self.ignore, self.protocol, self.binary = classes, ignore, protocol, binary
        self.protocols = higher(protocol)
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("broken", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts (B, C, H, W) scores against int (B, H, W) labels; binary as the class says."""
        highest, guess = prediction.max(1)
        if self.binary:
            guess, target = (highest > 0).long(), target[:, 0].long()
        valid = target != self.ignore
        self.broken += (highest.isnan() & valid).sum()
        cell = target[valid] * self.classes + guess[valid]
        self.confusion += torch.bincount(cell, minlength=self.classes**2).view(self.classes, self.classes)

    def compute(self) -> dict[str, float]:
        """Returns ``{protocol: share in [0, 1]}``; NaN without labels, or if a valid prediction was NaN."""
        if self.broken:
            return {self.protocol: float("nan")}
        hit = self.confusion.diag().double()
        union = self.confusion.sum(0) + self.confusion.sum(1) - self.confusion.diag()
        seen = union > 0
        return {self.protocol: float((hit[seen] / union[seen]).mean())}
