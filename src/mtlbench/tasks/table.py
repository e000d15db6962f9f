"""Tasks of tables: counts of events, and several labels that hold at the same time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from mtlbench.metrics import LabelF1, PoissonDeviance
from mtlbench.tasks.base import Array, Number, Task, first_of, masked, masked_sum
from mtlbench.tasks.blind import Blind, Mean, log_rate, micro_f1_logits


@dataclass(frozen=True)
class Count(Number):
    """How often something happens. Target: float32 (B,), whole numbers >= 0, NaN = missing.

    The head predicts the logarithm of a rate. Loss: the negative log-likelihood of a Poisson distribution, without the
    term of the target alone. Score: mean Poisson deviance; mean absolute error.
    """

    kind: ClassVar[str] = "count"

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        valid = self.valid(target)
        rate = masked(prediction, valid)[:, 0]
        return masked_sum(rate.exp() - torch.where(valid, target, 0.0) * rate, valid)

    def decode(self, prediction: Tensor) -> Tensor:  # noqa: D102
        return prediction[:, 0].exp()

    def metric(self) -> Metric:  # noqa: D102
        return PoissonDeviance(self)

    def blind(self) -> Blind:
        """Returns the mean count, which has the least deviance."""
        return Mean(self.valid, link=log_rate)

    def fault(self, target: Tensor) -> str | None:  # noqa: D102
        known = target[~target.isnan()]
        bad = known.isinf() | (known < 0) | (known != known.round())
        return (
            f"counts are whole numbers from 0, or NaN for missing. Found {first_of(known, bad)}" if bad.any() else None
        )


@dataclass(frozen=True)
class MultiLabel(Task):
    """Several labels, each of which holds or not. Target: float32 (B, K), 0 or 1, NaN = missing.

    Loss: binary cross entropy, averaged over known labels. Score: F1 over all decisions (micro-averaged); share of
    correct decisions. A label is predicted if its probability is above 0.5.

    Attributes:
        labels: Names of the K labels.
    """

    labels: tuple[str, ...] = ()
    kind: ClassVar[str] = "multi_label"
    dense: ClassVar[bool] = False

    @property
    def channels(self) -> int:  # noqa: D102
        return len(self.labels)

    def valid(self, target: Tensor) -> Tensor:
        """Returns which labels are known: bool (B, K)."""
        return ~target.isnan()

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        valid = self.valid(target)
        scores, wanted = torch.where(valid, prediction, 0.0), torch.where(valid, target, 0.0).to(prediction.dtype)
        return masked_sum(F.binary_cross_entropy_with_logits(scores, wanted, reduction="none"), valid)

    def decode(self, prediction: Tensor) -> Tensor:
        """Returns the probability of every label, (B, K)."""
        return prediction.sigmoid()

    def metric(self) -> Metric:  # noqa: D102
        return LabelF1()

    def blind(self) -> Blind:
        """Returns the fixed set of labels that has the best F1 on the training labels."""
        return Mean(self.valid, lambda target: target[:, None], micro_f1_logits)

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.full((len(self.labels),), float("nan"))

    def fault(self, target: Tensor) -> str | None:  # noqa: D102
        bad = ~target.isnan() & (target != 0) & (target != 1)
        return f"labels are 0 or 1, or NaN for missing. Found {first_of(target, bad)}" if bad.any() else None

    def caption(self, value: Array) -> str:
        """Returns the names of the labels that hold."""
        if not (value == value).any():
            return "–"
        return ", ".join(name for name, share in zip(self.labels, value, strict=True) if share > 0.5) or "none"
