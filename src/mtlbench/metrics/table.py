"""Metrics of tables: counts, and several labels per row."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torchmetrics import Metric

from mtlbench.metrics.protocol import higher, lower


class _Decodes(Protocol):
    def decode(self, prediction: Tensor) -> Tensor: ...


class PoissonDeviance(Metric):
    """Mean Poisson deviance and mean absolute error of predicted rates; NaN labels do not count.

    The deviance of a rate μ for a count y is 2 (y ln(y / μ) − y + μ), with 0 ln 0 = 0.

    Args:
        task: Its ``decode`` turns raw predictions (B, 1) into rates (B,).
    """

    full_state_update = False
    protocols = lower("poisson_deviance@1", "mae@1")
    deviance: Tensor
    error: Tensor
    count: Tensor

    def __init__(self, task: _Decodes):
        super().__init__()
        self.task = task
        for name in ("deviance", "error"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds (B, 1) predictions against float (B,) counts."""
        valid = ~target.isnan()
        rate, y = self.task.decode(prediction)[valid].double(), target[valid].double()
        self.deviance += 2 * (torch.xlogy(y, y) - torch.xlogy(y, rate) - y + rate).sum()
        self.error += (rate - y).abs().sum()
        self.count += valid.sum()

    def compute(self) -> dict[str, float]:
        """Returns both means; NaN without labels."""
        return {
            "poisson_deviance@1": float(self.deviance / self.count),
            "mae@1": float(self.error / self.count),
        }


class LabelF1(Metric):
    """F1 over the decisions on all labels of all rows, and the share of correct decisions; NaN labels do not count.

    F1 = 2 TP / (2 TP + FP + FN), summed over rows and labels (micro-averaged). It is 1 if no label holds and none is
    predicted.
    """

    full_state_update = False
    protocols = higher("micro_f1@1", "label_accuracy@1")
    hits: Tensor
    marked: Tensor
    correct: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("hits", "marked", "correct", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts (B, K) logits against (B, K) labels."""
        valid = ~target.isnan()
        score, truth = prediction[valid], target[valid] > 0.5
        positive = score > 0
        # A score that is not a number must not pass as a decision.
        unsure = torch.where(score.isnan().any(), torch.nan, 0.0).double()
        self.hits += 2 * (positive & truth).sum() + unsure
        self.marked += positive.sum() + truth.sum()
        self.correct += (positive == truth).sum() + unsure
        self.count += valid.sum()

    def compute(self) -> dict[str, float]:
        """Returns both shares in [0, 1]; NaN without labels, or if a labelled prediction was NaN."""
        f1 = self.hits / self.marked if self.marked > 0 else torch.where(self.count > 0, 1.0 + 0 * self.hits, torch.nan)
        return {"micro_f1@1": float(f1), "label_accuracy@1": float(self.correct / self.count)}
