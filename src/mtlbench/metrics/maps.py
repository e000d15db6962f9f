"""Metrics of Taskonomy's tasks: errors of real-valued maps, and agreement with soft class labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from mtlbench.metrics.protocol import higher, lower
from mtlbench.metrics.scalar import RunningMean


class MapError(Metric):
    """Mean absolute and root mean square error of maps, over channels and all valid pixels of the set.

    For depth, keypoints, texture and occlusion edges, reshading, principal curvature and segments of Taskonomy, in
    the unit of the target.

    Args:
        ignore: Value of invalid pixels, in all channels.
    """

    full_state_update = False
    absolute: Tensor
    square: Tensor
    count: Tensor
    protocols = lower("map_l1@1", "map_rmse@1")

    def __init__(self, *, ignore: float = 255):
        super().__init__()
        self.ignore = ignore
        for name in ("absolute", "square"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds predictions (B, C, H, W) against targets of the same shape."""
        valid = (target[:, :1] != self.ignore).expand_as(target)
        error = (prediction.double() - target)[valid].abs()
        self.absolute += error.sum()
        self.square += error.square().sum()
        self.count += valid.sum()

    def compute(self) -> dict[str, float]:
        """Returns both errors; NaN without valid pixels, or if a valid prediction was NaN."""
        return {
            "map_l1@1": float(self.absolute / self.count),
            "map_rmse@1": float((self.square / self.count).sqrt()),
        }


class SoftAccuracy(RunningMean):
    """Share of images whose highest score is the most probable class of a soft label."""

    protocols = higher("soft_accuracy@1")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts scores (B, C) against distributions (B, C); a label that begins with NaN is missing."""
        valid = ~target[:, 0].isnan()
        highest, guess = prediction.max(1)
        hit = (guess == target.argmax(1)).double()
        self.add(torch.where(highest.isnan(), torch.nan, hit)[valid])

    def compute(self) -> dict[str, float]:
        """Returns the share in [0, 1]; NaN without labels, or if a labelled prediction was NaN."""
        return {"soft_accuracy@1": float(self.mean())}


class SoftCrossEntropy(RunningMean):
    """Cross entropy of softmax(prediction) against soft labels, in nats, averaged over images."""

    protocols = lower("soft_cross_entropy@1")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds scores (B, C) against distributions (B, C); a label that begins with NaN is missing."""
        valid = ~target[:, 0].isnan()
        self.add(F.cross_entropy(prediction[valid].double(), target[valid].double(), reduction="none"))

    def compute(self) -> dict[str, float]:
        """Returns the mean; NaN without labels, or if a labelled prediction was NaN."""
        return {"soft_cross_entropy@1": float(self.mean())}
