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
from mtlbench.tasks.base import Array, Task, first_of, masked, masked_sum
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
        return masked_sum((masked(prediction, valid)[:, 0] - torch.where(valid, target, 0.0)).square(), valid)

    def decode(self, prediction: Tensor) -> Tensor:  # noqa: D102
        return prediction[:, 0]

    def metric(self) -> Metric:  # noqa: D102
        return SquaredError(unit=self.unit)

    def blind(self) -> Blind:
        """Returns the mean."""
        return Mean(self.valid)

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.tensor(float("nan"))
