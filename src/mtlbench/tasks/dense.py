"""Tasks: one thing to predict, with its loss, its ignore rule, its metrics and their direction.

A task is declared by a data module (`MTLDataModule.TASKS`) and chosen, scaled or made optional by a suite.
Every loss is a *sum over valid elements*; `count` tells how many there were. Means are taken later, over all
ranks, as Σ sum / Σ count, which is exact however labels are spread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from mtlbench.metrics import (
    DepthError,
    EdgeODSF,
    Joint,
    MaxF,
    MeanIoU,
    MeanLoss,
    NormalsError,
    SaliencyIoU,
)
from mtlbench.tasks.base import IGNORE, Task, masked, masked_sum


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

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.full((height, width), IGNORE, dtype=torch.int64)


@dataclass(frozen=True)
class HumanParts(SemanticSegmentation):
    """Body parts, background included. As semantic segmentation; an image without annotated people is missing."""

    classes: int = 7
    protocol: str = "parts_miou@1"
    kind: ClassVar[str] = "human_parts"


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

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.full((3, height, width), float(IGNORE))


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

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.full((1, height, width), float(IGNORE))
