"""Tasks: one thing to predict, with its loss, its ignore rule, its metrics and their direction.

A task is declared by a data module (`MTLDataModule.TASKS`) and chosen, scaled or made optional by a suite.
Every loss is a *sum over valid elements*; `count` tells how many there were. Means are taken later, over all
ranks, as Σ sum / Σ count, which is exact however labels are spread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from mtlbench.metrics import (
    Accuracy,
    DepthError,
    EdgeODSF,
    Joint,
    MaxF,
    MeanIoU,
    MeanLoss,
    NormalsError,
    SaliencyIoU,
    SquaredError,
)
from mtlbench.metrics.protocol import Protocol

IGNORE = 255
"""Ignore value of every dense label: class ids and, in all channels, depth, normals and edges."""

NO_CLASS = -1
"""Label of a sample without an annotation, for whole-image classification."""


@dataclass(frozen=True)
class Task(ABC):
    """One thing to predict.

    Attributes:
        name: Key in ``batch["targets"]`` and in the network's predictions.
        scale: Static factor on the loss, applied before any balancing.
        optional: Whether the task is dropped when the data lacks it altogether.
    """

    name: str
    scale: float = 1.0
    optional: bool = False

    kind: ClassVar[str]
    dense: ClassVar[bool] = True
    in_delta_m: ClassVar[bool] = True

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels that the head must predict."""

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """What `metric` computes; the first one enters Δm and the ranking."""
        return cast(tuple[Protocol, ...], self.metric().protocols)

    @abstractmethod
    def valid(self, target: Tensor) -> Tensor:
        """Returns which elements carry a label: bool, (B, H, W) for dense tasks, else (B,)."""

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Returns the sum of the loss over valid elements, a scalar in the graph of ``prediction``.

        Args:
            prediction: (B, channels, H, W) or (B, channels), float32, raw network output.
            target: As the kind's docstring says.
        """

    @abstractmethod
    def metric(self) -> Metric:
        """Returns a fresh metric: ``update(prediction, target)``, ``compute() -> {protocol id: float}``.

        Its ``protocols`` tell what it computes.
        """

    def monitor(self) -> Metric:
        """Returns what is computed during training, where `metric` takes too long; default: `metric`."""
        return self.metric()

    @abstractmethod
    def blank(self, height: int, width: int) -> Tensor:
        """Returns the target of a sample that has no label for this task."""

    def decode(self, prediction: Tensor) -> Tensor:
        """Returns a raw prediction in the form of a target: class ids, probability, unit vector, metres, number."""
        return prediction

    def count(self, target: Tensor) -> int:
        """Returns the number of valid elements; the same on every device and independent of predictions."""
        return int(self.valid(target).sum())

    def describe(self) -> dict[str, Any]:
        """Returns the plain record that enters a run's identity."""
        return {"kind": self.kind, **asdict(self), "protocols": [asdict(p) for p in self.protocols]}

    def with_options(self, **changes: Any) -> Task:
        """Returns a copy with another ``scale`` or ``optional``."""
        return replace(self, **changes)


def _masked(prediction: Tensor, valid: Tensor) -> Tensor:
    """Returns the prediction (B, C, ...) with zeros where ``valid`` (B, ...) is False.

    Before the loss and not after it: an ignored element may hold NaN, and 0 · NaN would poison the gradient.
    """
    return torch.where(valid[:, None], prediction, 0.0)


def _masked_sum(per_element: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, per_element, 0.0).sum()


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
        scores = _masked(prediction, self.valid(target))
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
        logits = _masked(prediction, valid)[:, 0]
        entropy = F.binary_cross_entropy_with_logits(logits, torch.where(valid, truth, 0.0), reduction="none")
        w = self.positive_weight(positive, valid)
        return _masked_sum(torch.where(positive, w * entropy, (1 - w) * entropy), valid)


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
        difference = (F.normalize(_masked(prediction, valid), dim=1) - target).abs().mean(1)
        return _masked_sum(difference, valid)

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
        return _masked_sum((_masked(prediction, valid) - target).abs()[:, 0], valid)

    def metric(self) -> Metric:  # noqa: D102
        return DepthError(ignore=IGNORE)

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.full((1, height, width), float(IGNORE))


@dataclass(frozen=True)
class Classification(Task):
    """One class for an image. Target: int64 (B,), 0..classes-1, -1 = missing. Cross entropy, accuracy."""

    classes: int = 2
    kind: ClassVar[str] = "classification"
    dense: ClassVar[bool] = False

    @property
    def channels(self) -> int:  # noqa: D102
        return self.classes

    def valid(self, target: Tensor) -> Tensor:  # noqa: D102
        return target != NO_CLASS

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        scores = _masked(prediction, self.valid(target))
        return F.cross_entropy(scores, target, ignore_index=NO_CLASS, reduction="sum")

    def decode(self, prediction: Tensor) -> Tensor:  # noqa: D102
        return prediction.argmax(1)

    def metric(self) -> Metric:  # noqa: D102
        return Accuracy(ignore=NO_CLASS)

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.tensor(NO_CLASS)


@dataclass(frozen=True)
class Regression(Task):
    """One number for an image. Target: float32 (B,), NaN = missing. Squared error; RMSE.

    Attributes:
        unit: Unit of the target, shown beside the score.
    """

    unit: str = ""
    kind: ClassVar[str] = "regression"
    dense: ClassVar[bool] = False

    @property
    def channels(self) -> int:  # noqa: D102
        return 1

    def valid(self, target: Tensor) -> Tensor:  # noqa: D102
        return ~target.isnan()

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        valid = self.valid(target)
        return _masked_sum((_masked(prediction, valid)[:, 0] - torch.where(valid, target, 0.0)).square(), valid)

    def decode(self, prediction: Tensor) -> Tensor:  # noqa: D102
        return prediction[:, 0]

    def metric(self) -> Metric:  # noqa: D102
        return SquaredError(unit=self.unit)

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.tensor(float("nan"))
