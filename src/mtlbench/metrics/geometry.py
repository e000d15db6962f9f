"""Errors of depth and surface normals, pooled over all valid pixels of the data set and all ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from mtlbench.metrics.protocol import higher, lower


class NormalsError(Metric):
    """Angle between unit-normalised prediction and truth: mean, RMSE, median (to 0.01 deg), shares under 11.25, ...

    The limits of the shares are 11.25, 22.5 and 30 deg. Median and shares come from a histogram, so that memory stays
    flat and ranks add exactly. Of an even number of pixels the median is the lower of the two middle values. Some
    published "rmse" are the mean; `normals_rmse@1` is the root of the mean square.

    Args:
        ignore: Value of invalid pixels, in all channels.
    """

    full_state_update = False
    total: Tensor
    square: Tensor
    histogram: Tensor
    BINS = 18_000
    LIMITS = (11.25, 22.5, 30)
    protocols = (
        *lower("normals_mean@1", "normals_median@1", "normals_rmse@1", unit="deg"),
        *higher("normals_within_11.25@1", "normals_within_22.5@1", "normals_within_30@1"),
    )

    def __init__(self, *, ignore: float = 255):
        super().__init__()
        self.ignore = ignore
        for name in ("total", "square"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("histogram", torch.zeros(self.BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds (B, 3, H, W) predictions of any length against unit vectors."""
        valid = target[:, 0] != self.ignore
        # In float64: the cosine of a small angle is too close to 1 for float32.
        cosine = (F.normalize(prediction.double(), dim=1) * F.normalize(target.double(), dim=1)).sum(1)[valid]
        angle = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
        self.total += angle.sum()
        self.square += angle.square().sum()
        cell = (angle.nan_to_num() * (self.BINS / 180)).long().clamp(max=self.BINS - 1)
        self.histogram += torch.bincount(cell, minlength=self.BINS)

    def compute(self) -> dict[str, float]:
        """Returns angles in degrees, shares in [0, 1]; NaN without valid pixels, or if a valid prediction was NaN."""
        # Propagates NaN, which the histogram alone would ignore.
        count = self.histogram.sum() + 0 * self.total
        cumulated = self.histogram.cumsum(0)
        median = torch.searchsorted(cumulated, (self.histogram.sum() + 1) // 2) + 0.5
        under = {x: cumulated[int(x * self.BINS / 180) - 1] / count for x in self.LIMITS}
        return {
            "normals_mean@1": float(self.total / count),
            "normals_median@1": float(median * (180 / self.BINS) * (count / count)),
            "normals_rmse@1": float((self.square / count).sqrt()),
            **{f"normals_within_{x:g}@1": float(share) for x, share in under.items()},
        }


class DepthError(Metric):
    """Errors of depth in metres: RMSE, absolute, relative, and the shares within a factor 1.25, 1.25^2, 1.25^3.

    `depth_rmse@1` pools the pixels of the set; `depth_rmse_images@1` is the mean of the images' own RMSE (the ASTMT
    line). A prediction that is not above 0 is within no factor.

    Args:
        ignore: Value of invalid pixels.
    """

    full_state_update = False
    square: Tensor
    absolute: Tensor
    relative: Tensor
    by_image: Tensor
    within: Tensor
    count: Tensor
    images: Tensor
    protocols = (
        *lower("depth_rmse@1", "depth_abs@1", unit="m"),
        *lower("depth_rel@1"),
        *lower("depth_rmse_images@1", unit="m"),
        *higher("depth_delta1@1", "depth_delta2@1", "depth_delta3@1"),
    )

    def __init__(self, *, ignore: float = 255):
        super().__init__()
        self.ignore = ignore
        for name in ("square", "absolute", "relative", "by_image"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("within", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("count", "images"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds (B, 1, H, W) predictions in metres."""
        valid = target != self.ignore
        truth, guess = target[valid].double(), prediction[valid].double()
        error = (guess - truth).abs()
        self.square += error.square().sum()
        self.absolute += error.sum()
        self.relative += (error / truth).sum()
        factor = torch.where(guess > 0, torch.maximum(guess / truth, truth / guess), torch.inf)
        self.within += torch.stack([(factor < 1.25**power).sum() for power in (1, 2, 3)])
        self.count += valid.sum()
        self._add_images(prediction.double(), target, valid)

    def _add_images(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        square = torch.where(valid, prediction - target, 0.0).square().flatten(1).sum(1)
        pixels = valid.flatten(1).sum(1)
        self.by_image += (square / pixels)[pixels > 0].sqrt().sum()
        self.images += (pixels > 0).sum()

    def compute(self) -> dict[str, float]:
        """Returns errors and shares in [0, 1]; NaN without valid pixels, or if a valid prediction was NaN."""
        # Propagates NaN, which a comparison would only count as a miss.
        shares = self.within / (self.count + 0 * self.absolute)
        return {
            "depth_rmse@1": float((self.square / self.count).sqrt()),
            "depth_abs@1": float(self.absolute / self.count),
            "depth_rel@1": float(self.relative / self.count),
            "depth_rmse_images@1": float(self.by_image / self.images),
            **{f"depth_delta{k}@1": float(share) for k, share in enumerate(shares, 1)},
        }
