"""Kinds of task that few data sets have: maps of values, inverse depth, cosine normals, distributions over classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from mtlbench.metrics import DepthError, Joint, MapError, SoftAccuracy, SoftCrossEntropy
from mtlbench.metrics.protocol import lower
from mtlbench.tasks import IGNORE, Depth, Normals, Task
from mtlbench.tasks.base import Array, first_of
from mtlbench.tasks.blind import Blind, Mean, Median, soft_logits


@dataclass(frozen=True)
class ValueMap(Task):
    """Values of any meaning for every pixel. Target: float32 (B, outputs, H, W), 255 in all channels = ignore.

    Loss: the absolute (power 1) or squared (power 2) error, averaged over the channels. Score: see `MapError`.

    Attributes:
        outputs: Channels.
        power: 1 or 2.
    """

    outputs: int = 1
    power: int = 1
    kind: ClassVar[str] = "value_map"

    @property
    def channels(self) -> int:  # noqa: D102
        return self.outputs

    def valid(self, target: Tensor) -> Tensor:  # noqa: D102
        return target[:, 0] != IGNORE

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        valid = self.valid(target)
        # Before the loss: an ignored element may hold NaN, and 0 · NaN would poison the gradient.
        error = torch.where(valid[:, None], prediction - target, 0.0).abs().pow(self.power).mean(1)
        return torch.where(valid, error, 0.0).sum()

    def metric(self) -> Metric:  # noqa: D102
        return MapError(ignore=IGNORE)

    def blind(self) -> Blind:
        """Returns the median at every pixel: the score is an absolute error, whatever the loss."""
        return Median(self.valid)

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.full((self.outputs, height, width), float(IGNORE))


@dataclass(frozen=True)
class InverseDepth(Depth):
    """Inverse depth or disparity, in the data's own unit. Target as for `Depth`. L1; absolute and relative error."""

    kind: ClassVar[str] = "inverse_depth"

    def zoom(self, scale: float) -> float:  # noqa: D102
        return scale

    def metric(self) -> Metric:  # noqa: D102
        return _InverseDepthError(ignore=IGNORE)

    def blind(self) -> Blind:
        """Returns the median at every pixel: the score is an absolute error."""
        return Median(self.valid)


class _InverseDepthError(DepthError):
    """Absolute and relative error under the names of `InverseDepth`."""

    protocols = lower("inverse_depth_abs@1", "inverse_depth_rel@1")

    def compute(self) -> dict[str, float]:
        """Returns absolute and relative error pooled over the set; NaN without valid pixels."""
        found = super().compute()
        return {f"inverse_{name}": found[name] for name in ("depth_abs@1", "depth_rel@1")}


@dataclass(frozen=True)
class CosineNormals(Normals):
    """Surface normals trained with 1 - cosine of the angle, as in MTAN and Mod-Squad. Else as `Normals`."""

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        valid = self.valid(target)
        unit = F.normalize(torch.where(valid[:, None], prediction, 0.0), dim=1)
        return torch.where(valid, 1 - (unit * target).sum(1), 0.0).sum()


@dataclass(frozen=True)
class SoftClassification(Task):
    """A distribution over classes for an image. Target: float32 (B, classes), sums to 1, NaN = missing.

    Loss: cross entropy against the distribution. Score: share of images whose highest
    class is the target's.
    """

    classes: int = 2
    kind: ClassVar[str] = "soft_classification"
    dense: ClassVar[bool] = False

    @property
    def channels(self) -> int:  # noqa: D102
        return self.classes

    def valid(self, target: Tensor) -> Tensor:  # noqa: D102
        return ~target[:, 0].isnan()

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        valid = self.valid(target)[:, None]
        scores, truth = torch.where(valid, prediction, 0.0), torch.where(valid, target, 0.0)
        return -(truth * scores.log_softmax(1)).sum()

    def decode(self, prediction: Tensor) -> Tensor:  # noqa: D102
        return prediction.softmax(1)

    def metric(self) -> Metric:  # noqa: D102
        return Joint(SoftAccuracy(), SoftCrossEntropy())

    def blind(self) -> Blind:
        """Returns the mean distribution, with the class first that is most often the likeliest."""

        def encode(target: Tensor) -> Tensor:
            likeliest = target.argmax(1, keepdim=True) == torch.arange(self.classes)
            return torch.cat([target, likeliest.to(target.dtype)], 1)

        return Mean(self.valid, encode, soft_logits)

    def fault(self, target: Tensor) -> str | None:  # noqa: D102
        known = target[~target.isnan()].reshape(-1)
        if known.numel() % self.classes or not ((known >= 0) & (known <= 1 + 1e-4)).all():
            return f"a distribution holds shares in 0..1, or NaN throughout. Found {known.amin():g}..{known.amax():g}"
        sums = known.reshape(-1, self.classes).sum(1)
        bad = (sums - 1).abs() > 1e-3
        return f"a distribution sums to 1. Found {first_of(sums, bad)}" if bad.any() else None

    def caption(self, value: Array) -> str:
        """Returns the likeliest class and its share."""
        shares = np.asarray(value, float).reshape(-1)
        return "–" if np.isnan(shares).any() else f"class {int(shares.argmax())} ({shares.max():.0%})"

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.full((self.classes,), float("nan"))
