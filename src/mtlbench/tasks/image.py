"""Tasks with one answer for a whole image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from mtlbench import visualise
from mtlbench.metrics import Accuracy, SquaredError
from mtlbench.tasks.base import Array, Number, Task, first_of, masked, masked_sum
from mtlbench.tasks.blind import Blind, Mean, class_logits

NO_CLASS = -1
"""Label of a sample without an annotation, for whole-image classification."""


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
        scores = masked(prediction, self.valid(target))
        return F.cross_entropy(scores, target, ignore_index=NO_CLASS, reduction="sum")

    def decode(self, prediction: Tensor) -> Tensor:  # noqa: D102
        return prediction.argmax(1)

    def metric(self) -> Metric:  # noqa: D102
        return Accuracy(ignore=NO_CLASS)

    def blind(self) -> Blind:
        """Returns the share of every class."""
        return Mean(self.valid, lambda target: target[:, None] == torch.arange(self.classes), class_logits)

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.tensor(NO_CLASS)

    def fault(self, target: Tensor) -> str | None:  # noqa: D102
        bad = (target < NO_CLASS) | (target >= self.classes)
        if not bad.any():
            return None
        return f"classes are 0..{self.classes - 1}, or {NO_CLASS} for missing. Found {first_of(target, bad)}"

    def caption(self, value: Array) -> str:  # noqa: D102
        return visualise.class_name(value, getattr(self, "class_names", ()))


@dataclass(frozen=True)
class Regression(Number):
    """One number for an image. Target: float32 (B,), NaN = missing. Squared error; RMSE.

    Networks predict (target − mean) / std, and the loss is the squared error of that. With targets far from 0, a
    network otherwise spends its first steps on their mean, at the cost of what it shares with other tasks.

    Attributes:
        unit: Unit of the target, shown beside the score.
        mean: Typical value of the target, in its unit.
        std: Typical deviation from `mean`, in its unit; > 0.
    """

    unit: str = ""
    mean: float = 0.0
    std: float = 1.0
    kind: ClassVar[str] = "regression"

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"Regression {self.name!r}: std must be above 0. Found {self.std}.")

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        valid = self.valid(target)
        wanted = (torch.where(valid, target, 0.0) - self.mean) / self.std
        return masked_sum((masked(prediction, valid)[:, 0] - wanted).square(), valid)

    def decode(self, prediction: Tensor) -> Tensor:  # noqa: D102
        return prediction[:, 0] * self.std + self.mean

    def metric(self) -> Metric:  # noqa: D102
        return SquaredError(self, unit=self.unit)

    def blind(self) -> Blind:
        """Returns the mean."""
        return Mean(self.valid, link=lambda means, _: (means - self.mean) / self.std)
