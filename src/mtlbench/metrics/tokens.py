"""Metrics of texts: labels of tokens, and answers that are parts of a text."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from mtlbench.metrics.agreement import ClassAgreement
from mtlbench.metrics.protocol import higher


class TokenAgreement(ClassAgreement):
    """F1 of labelled tokens, and the share of correct ones.

    With a class ``background``, F1 = 2 TP / (2 TP + FP + FN), summed over all other classes (micro-averaged); it is 1
    if no token has or gets another class. Without one, it is the mean of the classes' F1, over those that a label or a
    prediction has.

    Args:
        classes: Number of classes K.
        background: The class that does not count as found; None if every class does.
    """

    def __init__(self, classes: int, background: int | None = None):
        super().__init__(classes, "macro_f1")
        self.background = background
        self.score = "token_macro_f1@1" if background is None else "token_f1@1"
        self.protocols = higher(self.score, "token_accuracy@1")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts (B, K, N) scores against int (B, length) labels, -1 for none."""
        target = target[:, : prediction.shape[2]]
        super().update(prediction.transpose(1, 2).flatten(0, 1), target.flatten())

    def compute(self) -> dict[str, float]:
        """Returns both shares in [0, 1]; NaN without labels, or if the prediction of a labelled token was NaN."""
        hits, count = self.table.diag(), self.table.sum()
        marked = self.table.sum(0) + self.table.sum(1)
        if self.background is None:
            f1 = (2 * hits / marked)[marked != 0].mean()
        else:
            counted = torch.arange(self.classes, device=hits.device) != self.background
            found = marked[counted].sum()
            f1 = torch.where(found == 0, torch.ones_like(found), 2 * hits[counted].sum() / found)
        f1 = torch.where(count == 0, torch.nan, f1 + 0 * count)
        return {self.score: float(f1), "token_accuracy@1": float(hits.sum() / count)}


class SpanOverlap(Metric):
    """F1 of the tokens of predicted and true answers, averaged over texts, and the share of exact answers.

    F1 of one text is 2 · common / (predicted + true), all counted in tokens. SQuAD's own script counts words after
    removing articles and punctuation, so its F1 differs slightly.
    """

    full_state_update = False
    protocols = higher("span_f1@1", "exact_match@1")
    overlap: Tensor
    exact: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("overlap", "exact"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds (B, 2, N) scores against int (B, 4) targets; see `mtlbench.tasks.Span`."""
        valid = target[:, 0] >= 0
        prediction, target = prediction[valid], target[valid]
        inside = present(prediction, target)
        scores = torch.where(inside[:, None], prediction, -torch.inf)
        found, truth = best_span(scores), target[:, :2]
        common = torch.minimum(found[:, 1], truth[:, 1]) - torch.maximum(found[:, 0], truth[:, 0]) + 1
        sizes = (found[:, 1] - found[:, 0] + 1) + (truth[:, 1] - truth[:, 0] + 1)
        # A prediction that is not a number must not pass as an answer.
        sure = torch.where(scores.isnan().flatten(1).any(1), torch.nan, 1.0).double()
        self.overlap += (2 * common.clamp(min=0).double() / sizes * sure).sum()
        self.exact += ((found == truth).all(1).double() * sure).sum()
        self.count += valid.sum()

    def compute(self) -> dict[str, float]:
        """Returns both shares in [0, 1]; NaN without labels, or if the prediction of a labelled text was NaN."""
        return {"span_f1@1": float(self.overlap / self.count), "exact_match@1": float(self.exact / self.count)}


def present(prediction: Tensor, target: Tensor) -> Tensor:
    """Returns which positions of a prediction (B, 2, N) belong to the text of a span's target (B, 4): bool (B, N)."""
    places = torch.arange(prediction.shape[2], device=target.device)
    return (target[:, 2:3] <= places) & (places < target[:, 3:])


def best_span(scores: Tensor) -> Tensor:
    """Returns the first and the last token (B, 2) with the highest sum of scores (B, 2, N), first ≤ last."""
    starts, ends = scores.unbind(1)
    # The best first token for every last one is the best so far.
    so_far, first = starts.cummax(1)
    last = (so_far + ends).argmax(1, keepdim=True)
    return torch.cat([first.gather(1, last), last], 1)
