"""Errors of depth and surface normals, pooled over all valid pixels of the set and all ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric


class NormalsError(Metric):
    """Angle between unit-normalised prediction and truth: mean, median (to 0.01 deg), share under 11.25 deg.

    The median comes from a histogram, so that memory stays flat and ranks add exactly.

    Args:
        ignore: Value of invalid pixels, in all channels.
    """

    full_state_update = False
    total: Tensor
    histogram: Tensor
    BINS = 18_000

    def __init__(self, *, ignore: float = 255):
        super().__init__()
        self.ignore = ignore
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("histogram", torch.zeros(self.BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds (B, 3, H, W) predictions of any length against unit vectors."""
        valid = target[:, 0] != self.ignore
        # In float64: the cosine of a small angle is too close to 1 for float32.
        cosine = (F.normalize(prediction.double(), dim=1) * F.normalize(target.double(), dim=1)).sum(1)[valid]
        angle = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
        self.total += angle.sum()
        cell = (angle * (self.BINS / 180)).long().clamp(max=self.BINS - 1)
        self.histogram += torch.bincount(cell, minlength=self.BINS)

    def compute(self) -> dict[str, float]:
        """Returns mean and median in degrees and the share under 11.25 degrees; NaN without valid pixels."""
        count = self.histogram.sum()
        cumulated = self.histogram.cumsum(0)
        median = torch.searchsorted(cumulated, (count + 1) // 2) + 0.5
        under = cumulated[int(11.25 * self.BINS / 180) - 1].double() / count
        nan = float("nan")
        return {
            "normals_mean@1": float(self.total / count),
            "normals_median@1": float(median * 180 / self.BINS) if count else nan,
            "normals_within_11.25@1": float(under) if count else nan,
        }


class DepthError(Metric):
    """Root mean square, absolute and relative error of depth in metres.

    Args:
        ignore: Value of invalid pixels.
    """

    full_state_update = False
    square: Tensor
    absolute: Tensor
    relative: Tensor
    count: Tensor

    def __init__(self, *, ignore: float = 255):
        super().__init__()
        self.ignore = ignore
        for name in ("square", "absolute", "relative"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds (B, 1, H, W) predictions in metres."""
        valid = target != self.ignore
        truth = target[valid].double()
        error = (prediction[valid].double() - truth).abs()
        self.square += error.square().sum()
        self.absolute += error.sum()
        self.relative += (error / truth).sum()
        self.count += valid.sum()

    def compute(self) -> dict[str, float]:
        """Returns the errors pooled over the set; NaN without valid pixels."""
        return {
            "depth_rmse@1": float((self.square / self.count).sqrt()),
            "depth_abs@1": float(self.absolute / self.count),
            "depth_rel@1": float(self.relative / self.count),
        }
