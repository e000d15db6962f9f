"""Tasks with a label per token of a text, and with an answer that is a part of the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from mtlbench.metrics import SpanOverlap, TokenAgreement
from mtlbench.metrics.tokens import best_span, present
from mtlbench.tasks.base import Array, Task, first_of, masked
from mtlbench.tasks.blind import Blind, Mean, class_logits
from mtlbench.tasks.blind_tokens import FixedSpan, found_logits
from mtlbench.tasks.image import NO_CLASS

__all__ = ["Span", "TokenLabels", "TokenTask"]


@dataclass(frozen=True)
class TokenTask(Task):
    """A task whose head predicts values for every token: (B, channels, N) for texts of at most N tokens.

    Targets have a fixed size, whatever the length of their text; predictions may be shorter.

    Attributes:
        length: Most tokens of a text.
    """

    length: int = 128
    dense: ClassVar[bool] = False
    per_token: ClassVar[bool] = True

    def form(self, height: int, width: int) -> tuple[int, ...]:
        """Returns (channels, length)."""
        return self.channels, self.length


@dataclass(frozen=True)
class TokenLabels(TokenTask):
    """One class per word, read at the word's first token. Target: int64 (B, length), 0..K-1, -1 = no label.

    Loss: cross entropy, averaged over labelled tokens. Score: F1 over all labelled tokens and every class except
    ``background`` (micro-averaged), or the mean of the classes' F1 if there is no such class; share of correct labels.

    Attributes:
        class_names: Names of the K classes, in order.
        background: Name of the class that is nothing to find, such as ``O``, "outside"; ``""`` for none.
    """

    class_names: tuple[str, ...] = ()
    background: str = ""
    kind: ClassVar[str] = "token_labels"

    @property
    def channels(self) -> int:  # noqa: D102
        return len(self.class_names)

    @property
    def background_class(self) -> int | None:
        """Number of the class ``background``."""
        return self.class_names.index(self.background) if self.background else None

    def valid(self, target: Tensor) -> Tensor:
        """Returns which tokens have a label: bool (B, length)."""
        return target != NO_CLASS

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        target = target[:, : prediction.shape[2]]
        scores = masked(prediction, self.valid(target))
        return F.cross_entropy(scores, target, ignore_index=NO_CLASS, reduction="sum")

    def decode(self, prediction: Tensor) -> Tensor:
        """Returns the class of every token, (B, N)."""
        return prediction.argmax(1)

    def decode_beside(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Returns the class of every labelled token, and -1 of others, (B, length)."""
        found = torch.full_like(target, NO_CLASS)
        found[:, : prediction.shape[2]] = self.decode(prediction)
        return torch.where(self.valid(target), found, NO_CLASS)

    def metric(self) -> Metric:  # noqa: D102
        return TokenAgreement(self.channels, self.background_class)

    def blind(self) -> Blind:
        """Returns the class of every position with the best score on the training labels, see `found_logits`."""
        link = class_logits if self.background_class is None else found_logits(self.background_class)
        return Mean(self.valid, lambda target: target[:, None] == torch.arange(self.channels)[:, None], link)

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.full((self.length,), NO_CLASS)

    def fault(self, target: Tensor) -> str | None:  # noqa: D102
        bad = (target < NO_CLASS) | (target >= self.channels)
        if not bad.any():
            return None
        return f"classes are 0..{self.channels - 1}, or {NO_CLASS} for none. Found {first_of(target, bad)}"

    def caption(self, value: Array) -> str:
        """Returns the names of the labelled tokens' classes, in order."""
        return " ".join(self.class_names[int(place)] for place in value if place != NO_CLASS) or "–"


@dataclass(frozen=True)
class Span(TokenTask):
    """An answer that is a part of the text.

    Target: int64 (B, 4), the answer's first and last token, the text's first token, and the token after its last. The
    answer's first token is -1 if it is missing. In pairs, the text is the second one.

    The head predicts two scores per token, that of the first and that of the last one; the prediction is the pair with
    the highest sum whose last token does not precede its first. Loss: the mean of both cross entropies over the tokens
    of the text. Score: F1 of predicted and true tokens, averaged over texts; share of answers that are found exactly.
    """

    kind: ClassVar[str] = "span"

    @property
    def channels(self) -> int:  # noqa: D102
        return 2

    def valid(self, target: Tensor) -> Tensor:
        """Returns which texts have an answer: bool (B,)."""
        return target[:, 0] >= 0

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        valid = self.valid(target)
        # A text without an answer has the loss 0; its scores all stay, so that none of them is infinite.
        inside = present(prediction, target) | ~valid[:, None]
        scores = torch.where(valid[:, None, None], prediction, 0.0)
        scores = torch.where(inside[:, None], scores, torch.finfo(scores.dtype).min)
        ends = [F.cross_entropy(scores[:, i], target[:, i], ignore_index=-1, reduction="sum") for i in range(2)]
        return (ends[0] + ends[1]) / 2

    def decode(self, prediction: Tensor) -> Tensor:
        """Returns the first and the last token, (B, 2)."""
        return best_span(prediction)

    def metric(self) -> Metric:  # noqa: D102
        return SpanOverlap()

    def blind(self) -> Blind:
        """Returns the fixed span with the best F1 on the first training labels, see `FixedSpan`."""
        return FixedSpan(self.valid, self.length)

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.tensor([-1, -1, 0, 0])

    def fault(self, target: Tensor) -> str | None:  # noqa: D102
        first, last, begin, end = target.unbind(-1)
        right = (0 <= begin) & (begin <= first) & (first <= last) & (last < end) & (end <= self.length)
        bad = (first != -1) & ~right
        if not bad.any():
            return None
        found = target.reshape(-1, 4)[bad.reshape(-1)][0].tolist()
        return (
            "a span is [first, last, begin, end] with 0 <= begin <= first <= last < end, end at most the length, or "
            f"first -1 for missing. Found {found}"
        )

    def caption(self, value: Array) -> str:
        """Returns the numbers of the first and the last token."""
        return f"tokens {int(value[0])} to {int(value[1])}" if value[0] >= 0 else "–"
