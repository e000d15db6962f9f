"""Metrics of agreement that are not means over samples: Matthews correlation and F1 for classes, and correlations."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from mtlbench import distributed
from mtlbench.metrics.protocol import higher

CLASS_SCORES = ("mcc", "f1", "macro_f1")
CORRELATIONS = ("pearson", "spearman")


class _Decodes(Protocol):
    def decode(self, prediction: Tensor) -> Tensor: ...


class ClassAgreement(Metric):
    """A score computed from the confusion matrix.

    ``mcc`` is the Matthews correlation, for any number of classes; 0 if all predictions or all labels are one class.
    ``f1`` is 2 TP / (2 TP + FP + FN) of the last of two classes. ``macro_f1`` is its mean over the classes that a label
    or a prediction has. A class without a label and without a prediction does not count.

    Args:
        classes: Number of classes C; 2 for ``f1``.
        score: One of `CLASS_SCORES`.
        ignore: Label of an unlabelled sample.

    Raises:
        ValueError: ``f1`` of more than two classes.
    """

    full_state_update = False
    table: Tensor

    def __init__(self, classes: int, score: str, *, ignore: int = -1):
        super().__init__()
        if score == "f1" and classes != 2:
            raise ValueError(f"f1 is a score of two classes. Found {classes}. Choose macro_f1.")
        self.classes, self.score, self.ignore = classes, score, ignore
        self.protocols = higher(f"{score}@1")
        self.add_state("table", torch.zeros(classes, classes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts (B, C) scores against int (B,) labels."""
        valid = target != self.ignore
        highest, guess = prediction[valid].max(1)
        places = target[valid] * self.classes + guess
        # A prediction that is not a number must not pass as a class.
        ones = torch.where(highest.isnan(), torch.nan, 1.0).double()
        self.table += torch.zeros_like(self.table).flatten().index_add(0, places, ones).view_as(self.table)

    def compute(self) -> dict[str, float]:
        """Returns the score; NaN without labels, or if a labelled prediction was NaN."""
        table = self.table.cpu().numpy()
        value = float("nan")
        if table.sum() > 0:
            value = _matthews(table) if self.score == "mcc" else _f1(table, macro=self.score == "macro_f1")
        return {f"{self.score}@1": value}


def _matthews(table: np.ndarray) -> float:
    labels, guesses, count = table.sum(1), table.sum(0), table.sum()
    spread = (count**2 - guesses @ guesses) * (count**2 - labels @ labels)
    return float((np.trace(table) * count - labels @ guesses) / np.sqrt(spread)) if spread > 0 else 0.0


def _f1(table: np.ndarray, *, macro: bool) -> float:
    marked = table.sum(0) + table.sum(1)
    each = np.divide(2 * np.diag(table), marked, out=np.zeros(len(table)), where=marked > 0)
    return float(each[marked > 0].mean()) if macro else float(each[-1])


class Correlation(Metric):
    """Pearson's and Spearman's correlation of one number per sample; NaN labels do not count.

    Predictions that are all equal have the correlation 0. Ties get their mean rank. All pairs are gathered and sorted,
    so the values do not depend on how the samples were divided over ranks.

    Args:
        task: Its ``decode`` turns raw predictions (B, 1) into numbers (B,).
        first: The correlation that enters Δm, one of `CORRELATIONS`.
    """

    full_state_update = False
    pairs: Tensor

    def __init__(self, task: _Decodes, first: str = "pearson"):
        super().__init__(sync_on_compute=False)  # Ranks without a pair cannot be gathered by torchmetrics.
        self.task = task
        self.protocols = higher(*(f"{name}@1" for name in sorted(CORRELATIONS, key=lambda name: name != first)))
        self.add_state("pairs", torch.zeros(0, 2, dtype=torch.float64), dist_reduce_fx=None)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds (B, 1) predictions against float (B,) labels."""
        valid = ~target.isnan()
        found = torch.stack([self.task.decode(prediction)[valid].double(), target[valid].double()], 1)
        self.pairs = torch.cat([self.pairs, found])

    def compute(self) -> dict[str, float]:
        """Returns both correlations; NaN without two different labels, or if a labelled prediction was NaN."""
        from scipy.stats import rankdata

        guess, truth = distributed.gather_rows(self.pairs).cpu().numpy().T
        order = np.lexsort((truth, guess))
        guess, truth = guess[order], truth[order]
        if np.isnan(guess).any():
            return dict.fromkeys((f"{name}@1" for name in CORRELATIONS), float("nan"))
        ranks = (rankdata(guess), rankdata(truth)) if len(guess) else (guess, truth)
        return {"pearson@1": _correlation(guess, truth), "spearman@1": _correlation(*ranks)}


def _correlation(guess: np.ndarray, truth: np.ndarray) -> float:
    if not len(truth) or truth.min() == truth.max():
        return float("nan")
    if guess.min() == guess.max():
        return 0.0
    one, two = guess - guess.mean(), truth - truth.mean()
    return float(one @ two / np.sqrt((one @ one) * (two @ two)))
