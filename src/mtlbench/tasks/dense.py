"""Tasks with an answer for every pixel: classes, binary maps, normals and depth.

A task is declared by a data module (`MTLDataModule.TASKS`) and chosen, scaled or made optional by a suite.
Every loss is a *sum over valid elements*; `count` tells how many there were. Means are taken later, over all
ranks, as Σ sum / Σ count, which is exact however labels are spread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from mtlbench import visualise
from mtlbench.metrics import DepthError, EdgeODSF, Joint, MaxF, MeanIoU, MeanLoss, NormalsError, SaliencyIoU
from mtlbench.tasks.base import IGNORE, Array, Task, first_of, masked, masked_sum
from mtlbench.tasks.blind import Best, Blind, Mean, logits, overlap_logit, overlap_logits, unit
from mtlbench.tasks.geometry import Geometry, LabelOptions
from mtlbench.visualise import Picture

NO_NORMAL = 127
"""Code of an invalid 8-bit normal in all three channels: the shortest vector that 8 bits hold."""

SHORT = 0.5
"""Vectors shorter than this are no normals: eight bits have no exact zero."""

OFF_UNIT = 0.01
"""How far the length of a normal may be from 1; half precision errs by less than a thousandth."""


@dataclass(frozen=True)
class SemanticSegmentation(Task):
    """A class for every pixel. Target: int64 (B, H, W), 0..classes-1, 255 = ignore. Cross entropy, mean IoU.

    Attributes:
        classes: Number of classes, background included.
        class_names: Names for figures; may be empty.
        protocol: Id under which the mean IoU is reported.
    """

    classes: int = 2
    class_names: tuple[str, ...] = field(default=(), compare=False)
    protocol: str = "semseg_miou@1"
    kind: ClassVar[str] = "semantic_segmentation"

    @property
    def channels(self) -> int:  # noqa: D102
        return self.classes

    def valid(self, target: Tensor) -> Tensor:  # noqa: D102
        return target != IGNORE

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        scores = masked(prediction, self.valid(target))
        return F.cross_entropy(scores, target, ignore_index=IGNORE, reduction="sum")

    def decode(self, prediction: Tensor) -> Tensor:  # noqa: D102
        return prediction.argmax(1)

    def metric(self) -> Metric:  # noqa: D102
        return MeanIoU(self.classes, ignore=IGNORE, protocol=self.protocol)

    def blind(self) -> Blind:
        """Returns the class of every pixel with which the mean IoU is best."""
        classes = torch.arange(self.classes).view(-1, 1, 1)
        return Mean(self.valid, lambda target: target[:, None] == classes, overlap_logits)

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.full((height, width), IGNORE, dtype=torch.int64)

    def fault(self, target: Tensor) -> str | None:  # noqa: D102
        low, high = target.aminmax()
        if 0 <= low and high < self.classes:
            return None
        # Within one byte, one comparison does: 255 + 1 is 0.
        if 0 <= low and high <= IGNORE and (target.to(torch.uint8) + 1).amax() <= self.classes:
            return None
        bad = (target < 0) | (target >= self.classes) & (target != IGNORE)
        if not bad.any():
            return None
        return f"classes are 0..{self.classes - 1}, or {IGNORE} for ignore. Found {first_of(target, bad)}"

    def draw(self, value: Array, truth: Array | None = None) -> Picture:  # noqa: D102
        return visualise.classes(value, self.classes)

    def warp(self, target: Array, geometry: Geometry, options: LabelOptions) -> Array:  # noqa: D102
        return geometry.nearest(target, options.background)

    def store(self, label: Array) -> Array:  # noqa: D102
        # 255 is the ignore value, so one byte holds every class that a target may have.
        return label.astype(np.uint8) if self.classes <= IGNORE and label.dtype != np.uint8 else label

    def restore(self, stored: Array) -> Array:  # noqa: D102
        return stored.astype(np.int64)


@dataclass(frozen=True)
class HumanParts(SemanticSegmentation):
    """Body parts, background included. As semantic segmentation; an image without annotated people is missing."""

    classes: int = 7
    protocol: str = "parts_miou@1"
    kind: ClassVar[str] = "human_parts"

    def vacant(self, target: Array) -> bool:
        """Returns whether nobody is left: a picture of background alone is no label."""
        return not ((target != 0) & (target != IGNORE)).any()


def _is_positive(target: Tensor) -> Tensor:
    return target == 1


@dataclass(frozen=True)
class BinaryMap(Task):
    """Base of maps with one logit a pixel. Target: float32 (B, 1, H, W), 0 or 1, 255 = ignore."""

    @property
    def channels(self) -> int:  # noqa: D102
        return 1

    def valid(self, target: Tensor) -> Tensor:  # noqa: D102
        return target[:, 0] != IGNORE

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.full((1, height, width), float(IGNORE))

    def decode(self, prediction: Tensor) -> Tensor:  # noqa: D102
        return prediction.sigmoid()

    def blind(self) -> Blind:
        """Returns the share of positives at every pixel."""
        return Mean(self.valid, _is_positive, logits)

    def fault(self, target: Tensor) -> str | None:  # noqa: D102
        small = target.to(torch.uint8)
        # Within one byte, one comparison does: 255 + 1 is 0.
        if target.numel() == 0 or torch.equal(small.to(target.dtype), target) and (small + 1).amax() <= 2:
            return None
        bad = (target != 0) & (target != 1) & (target != IGNORE)
        return f"values are 0, 1, or {IGNORE} for ignore. Found {first_of(target, bad)}" if bad.any() else None

    def draw(self, value: Array, truth: Array | None = None) -> Picture:  # noqa: D102
        return visualise.grey(value)

    def warp(self, target: Array, geometry: Geometry, options: LabelOptions) -> Array:  # noqa: D102
        return geometry.nearest(target, options.background)

    def positive_weight(self, positive: Tensor, valid: Tensor) -> Tensor | float:
        """Returns the weight of positive pixels, broadcastable to (B, H, W); negatives get one minus it."""
        raise NotImplementedError

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        valid, truth = self.valid(target), target[:, 0]
        positive = (truth == 1) & valid
        logits = masked(prediction, valid)[:, 0]
        entropy = F.binary_cross_entropy_with_logits(logits, torch.where(valid, truth, 0.0), reduction="none")
        w = self.positive_weight(positive, valid)
        return masked_sum(torch.where(positive, w * entropy, (1 - w) * entropy), valid)


@dataclass(frozen=True)
class Saliency(BinaryMap):
    """Foreground of an image. Class-balanced cross entropy, weights per image; mean IoU at probability 0.5.

    `saliency_miou@1` is the mean over background and foreground, counted over the whole set. The forms of the
    literature are reported beside it, each under its own name: see `SaliencyIoU` and `MaxF`.
    """

    kind: ClassVar[str] = "saliency"

    def positive_weight(self, positive: Tensor, valid: Tensor) -> Tensor:
        """Returns, per image, the share of negatives: (B, 1, 1). Per image, so a batch may be cut anywhere."""
        share = positive.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
        return (1 - share)[:, None, None]

    def metric(self) -> Metric:  # noqa: D102
        regions = MeanIoU(2, ignore=IGNORE, protocol="saliency_miou@1", binary=True)
        return Joint(regions, SaliencyIoU(ignore=IGNORE), MaxF(ignore=IGNORE), MaxF(squash=True, ignore=IGNORE))

    def blind(self) -> Blind:
        """Returns the share of foreground at every pixel, cut where the mean IoU is best."""
        return Mean(self.valid, _is_positive, overlap_logit)


@dataclass(frozen=True)
class Edges(BinaryMap):
    """Boundaries. Weighted cross entropy; odsF, oisF and AP (`EdgeODSF`) beside the loss.

    Matching pixels costs about 0.15 s for an image of 512 x 512, so during training the loss alone is computed.

    Attributes:
        weight: Weight of edge pixels; the others get one minus it.
        max_distance: How far from a true edge a predicted one may lie, as a share of the image's diagonal: 0.0075 is
            PASCAL-Context's, 0.011 NYUD-v2's. It names the protocol, see `edge_protocols`.
    """

    weight: float = 0.95
    max_distance: float = 0.0075
    kind: ClassVar[str] = "edges"

    def positive_weight(self, positive: Tensor, valid: Tensor) -> float:
        """Returns the fixed weight of the suite."""
        return self.weight

    def metric(self) -> Metric:  # noqa: D102
        return Joint(EdgeODSF(max_distance=self.max_distance, ignore=IGNORE), self.monitor())

    def blind(self) -> Blind:
        """Returns the share of edges at every pixel, or one value everywhere where that scores better."""
        return Best(self.valid, super().blind(), self.metric)

    def monitor(self) -> Metric:
        """Returns the loss."""
        return MeanLoss(self, protocol="edge_loss@1")


@dataclass(frozen=True)
class Normals(Task):
    """Surface normals. Target: float32 (B, 3, H, W), unit vectors, 255 in all channels = ignore.

    Loss: L1 to the normalised prediction, averaged over the three channels. Metric: mean angle in degrees.
    """

    kind: ClassVar[str] = "normals"

    @property
    def channels(self) -> int:  # noqa: D102
        return 3

    def valid(self, target: Tensor) -> Tensor:  # noqa: D102
        return target[:, 0] != IGNORE

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        valid = self.valid(target)
        difference = (F.normalize(masked(prediction, valid), dim=1) - target).abs().mean(1)
        return masked_sum(difference, valid)

    def decode(self, prediction: Tensor) -> Tensor:  # noqa: D102
        return F.normalize(prediction, dim=1)

    def metric(self) -> Metric:  # noqa: D102
        return NormalsError(ignore=IGNORE)

    def blind(self) -> Blind:
        """Returns the mean vector at every pixel, with length 1."""
        return Mean(self.valid, link=unit)

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.full((3, height, width), float(IGNORE))

    def fault(self, target: Tensor) -> str | None:  # noqa: D102
        x, y, z = target.unbind(-3)
        squares = (x * x).addcmul_(y, y).addcmul_(z, z)
        off = (squares - 1).abs_()
        if ((off <= 2 * OFF_UNIT) | (off == 3 * IGNORE**2 - 1)).all():
            return None
        # Written so that NaN breaks the rule.
        bad = ~((squares - 1).abs() <= 2 * OFF_UNIT) & ~((x == IGNORE) & (y == IGNORE) & (z == IGNORE))
        if not bad.any():
            return None
        length = first_of(squares.sqrt(), bad)
        return f"normals have length 1, or {IGNORE} in all channels for ignore. Found a length of {length:.4g}"

    def draw(self, value: Array, truth: Array | None = None) -> Picture:  # noqa: D102
        return visualise.normals(value)

    def warp(self, target: Array, geometry: Geometry, options: LabelOptions) -> Array:  # noqa: D102
        return geometry.normals(target, options.axes, options.vectors_how)

    def restore(self, stored: Array) -> Array:
        """Returns unit vectors, 255 where there is none, from 8-bit codes n = 2v/255 - 1 or floats: (3, H, W)."""
        vectors = stored.astype(np.float32)
        if stored.dtype == np.uint8:
            vectors *= np.float32(2 / 255)
            vectors -= 1
        length = np.sqrt(np.einsum("chw,chw->hw", vectors, vectors))
        valid = length >= SHORT
        vectors /= np.where(valid, length, 1)
        vectors[:, ~valid] = IGNORE
        return vectors

    def outside(self, stored: Array) -> float:  # noqa: D102
        return NO_NORMAL if stored.dtype == np.uint8 else 0


@dataclass(frozen=True)
class Depth(Task):
    """Depth in metres. Target: float32 (B, 1, H, W), > 0, 255 = ignore. L1; RMSE pooled over valid pixels."""

    kind: ClassVar[str] = "depth"

    @property
    def channels(self) -> int:  # noqa: D102
        return 1

    def valid(self, target: Tensor) -> Tensor:  # noqa: D102
        return target[:, 0] != IGNORE

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        valid = self.valid(target)
        return masked_sum((masked(prediction, valid) - target).abs()[:, 0], valid)

    def metric(self) -> Metric:  # noqa: D102
        return DepthError(ignore=IGNORE)

    def blind(self) -> Blind:
        """Returns the mean depth at every pixel: it minimises the RMSE."""
        return Mean(self.valid)

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.full((1, height, width), float(IGNORE))

    def fault(self, target: Tensor) -> str | None:  # noqa: D102
        if target.numel() == 0 or (target.amin() > 0 and target.amax() < float("inf")):  # NaN fails both
            return None
        bad = ~((target > 0) & target.isfinite())
        return f"values are above 0 and finite, or {IGNORE} for ignore. Found {first_of(target, bad)}"

    def draw(self, value: Array, truth: Array | None = None) -> Picture:  # noqa: D102
        return visualise.values(value, truth)

    def warp(self, target: Array, geometry: Geometry, options: LabelOptions) -> Array:  # noqa: D102
        if not options.nearer:
            return geometry.nearest(target, IGNORE)
        return geometry.depth(target, self.zoom(geometry.scale))

    def zoom(self, scale: float) -> float:
        """Returns the factor on the values of a scene that looks ``scale`` times as large."""
        return 1 / scale

    def restore(self, stored: Array) -> Array:
        """Returns float32 (1, H, W), 255 where the stored value is 0 = none."""
        return np.where(stored > 0, stored, np.float32(IGNORE)).astype(np.float32)[None]

    def outside(self, stored: Array) -> float:  # noqa: D102
        return 0
