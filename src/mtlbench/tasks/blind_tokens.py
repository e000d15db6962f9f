"""The best predictions that ignore the text, for tasks with labels of tokens; see `mtlbench.tasks.blind`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtlbench.tasks.blind import RAREST, Blind, First, Valid

COMPARED_SPANS = 500
"""Training answers on which `FixedSpan` compares its candidates."""


class FixedSpan(Blind):
    """The same span in every text: the one with the best mean F1 on the first training answers.

    Candidates begin where one of these answers begins and end where one ends. In a text that such a span leaves, its
    part within the text counts, or else the nearest token.

    Args:
        valid: `Task.valid`.
        length: Most tokens of a text.
    """

    def __init__(self, valid: Valid, length: int):
        self.length, self.kept = length, First(valid, lambda numbers: COMPARED_SPANS)

    def update(self, target: Tensor) -> None:
        """Keeps the answers (B, 4) of a batch while there is room."""
        self.kept.update(target)

    def reduce(self) -> None:
        """Collects what all ranks have kept."""
        self.kept.reduce()

    def prediction(self) -> Tensor:
        """Returns scores (2, length), which are highest at the span's ends; NaN without any answer."""
        target = self.kept.targets().long()
        if not len(target):
            return torch.full((2, self.length), torch.nan)
        first, last, begin, end = target[:, :, None].unbind(1)
        ends = last.unique()
        best, chosen = -1.0, torch.zeros(2, dtype=torch.int64)
        for start in first.unique():
            # (answers, ends)
            one, two = (place.clamp(begin, end - 1) for place in (start, ends[None]))
            common = (torch.minimum(two, last) - torch.maximum(one, first) + 1).clamp(min=0)
            f1 = 2 * common / (two - one + 1 + last - first + 1)
            score, place = f1[:, ends >= start].mean(0).max(0)
            if score > best:
                best, chosen = float(score), torch.stack([start, ends[ends >= start][place]])
        # In a text that a span leaves, the nearest token of the text has the highest score.
        return -(torch.arange(self.length) - chosen[:, None]).abs().float()


def found_logits(background: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns a function of the shares (K, L) of classes by position and of counts (L,), which gives scores (K, L).

    At some positions the highest score is that of the most frequent class other than ``background``, at the others that
    of ``background``. Of all such choices, F1 over the other classes is the highest on the training labels: for
    positions in order of the share that they would get right, it is the best of all first parts of the order.
    """

    def link(shares: Tensor, count: Tensor) -> Tensor:
        labels = shares.nan_to_num() * count
        labels[background] = 0
        hits, best = labels.max(0)
        order = (hits / count.clamp(min=1)).argsort(descending=True, stable=True)
        f1 = 2 * hits[order].cumsum(0) / (count[order].cumsum(0) + labels.sum()).clamp(min=1)
        chosen = torch.full_like(best, background)
        if f1.max() > 0:
            kept = order[: int(f1.argmax()) + 1]
            chosen[kept] = best[kept]
        scores = shares.nan_to_num().clamp(min=RAREST).log()
        return scores.scatter(0, chosen[None], 1.0)  # Logarithms of shares are at most 0.

    return link
