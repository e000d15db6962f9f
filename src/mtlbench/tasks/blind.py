"""The best prediction that ignores the input, fitted on training labels: the floor that every network must exceed.

An accumulator sees every training target once, on the rank that has it, and missing labels add nothing to it. `reduce`
then adds the ranks, exactly, so that any number of ranks gives the prediction of one process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from mtlbench import distributed

__all__ = [
    "Best", "Blind", "First", "Mean", "Median", "class_logits", "log_rate", "logits", "micro_f1_logits",
    "overlap_logit", "overlap_logits", "soft_logits", "unit",
]  # fmt: skip

Valid = Callable[[Tensor], Tensor]
"""`Task.valid`."""

RAREST = 1e-6
"""Smallest share that enters a logarithm: a class that never occurs gets a finite score."""

MEDIAN_VALUES = 2**25
"""Most numbers that a median keeps: 512 one-channel maps of 256 x 256 pixels, 128 MiB."""

ROUNDS = 100
"""Rounds of `overlap_logits`."""

COMPARED_IMAGES = 50
"""Training images on which `Best` compares its candidates."""


class Blind(ABC):
    """Fits one fixed prediction of a task."""

    def frame(self, height: int, width: int) -> None:  # noqa: B027
        """Is told the size of the images before the first update. Default: targets of the kind show it."""

    @abstractmethod
    def update(self, target: Tensor) -> None:
        """Adds a batch of training targets (B, ...), in the form of the task's kind."""

    @abstractmethod
    def reduce(self) -> None:
        """Adds what the other ranks have seen; once, after the last update on every rank."""

    @abstractmethod
    def prediction(self) -> Tensor:
        """Returns the raw prediction (channels, H, W) or (channels,), as a network would; NaN without any label."""


class Mean(Blind):
    """The mean of the labels over images, at every position of a dense task, and what the task makes of it.

    A position without any label gets the mean over all positions.

    Args:
        valid: Which elements carry a label.
        encode: Returns targets as numbers (B, C, ...). Default: unchanged, with a channel if they have none.
        link: Returns the raw prediction, of means (C, ...) and the number of labels (...). Default: the means.
    """

    def __init__(
        self,
        valid: Valid,
        encode: Callable[[Tensor], Tensor] | None = None,
        link: Callable[[Tensor, Tensor], Tensor] | None = None,
    ):
        self.valid, self.encode, self.link = valid, encode, link
        self.total: Tensor = torch.zeros((), dtype=torch.float64)
        self.count: Tensor = torch.zeros((), dtype=torch.float64)

    def update(self, target: Tensor) -> None:
        """Adds the labels of a batch."""
        valid = self.valid(target)
        values = self.encode(target) if self.encode else target if target.ndim > 1 else target[:, None]
        kept = torch.where(valid[:, None], values, torch.zeros((), dtype=values.dtype))
        self.total = self.total + kept.sum(0, dtype=torch.float64)
        self.count = self.count + valid.sum(0, dtype=torch.float64)

    def reduce(self) -> None:
        """Adds sums and counts over ranks."""
        distributed.sum_(self.total)
        distributed.sum_(self.count)

    def prediction(self) -> Tensor:
        """Returns the prediction that belongs to the means."""
        overall = self.total.flatten(1).sum(1) if self.total.ndim > 1 else self.total
        overall = (overall / self.count.sum()).view(-1, *[1] * (self.total.ndim - 1))
        mean = torch.where(self.count > 0, self.total / self.count, overall)
        return self.link(mean, self.count) if self.link else mean


class Median(Blind):
    """The median of the labels at every position: it minimises the absolute error.

    It is exact over the first labelled images of the split, of which `MEDIAN_VALUES` numbers are kept. A position
    without any label gets the median over all positions of its channel.

    Args:
        valid: Which elements carry a label.
        link: Returns the raw prediction of medians (C, ...). Default: the medians.
    """

    def __init__(self, valid: Valid, link: Callable[[Tensor], Tensor] | None = None):
        self.valid, self.kept = valid, First(valid, lambda numbers: max(1, MEDIAN_VALUES // numbers))
        self.link = link or (lambda medians: medians)

    def update(self, target: Tensor) -> None:
        """Keeps the labels of a batch while there is room."""
        self.kept.update(target)

    def reduce(self) -> None:
        """Collects what all ranks have kept."""
        self.kept.reduce()

    def prediction(self) -> Tensor:
        """Returns the medians; of an even number of labels, the lower of the two middle ones."""
        target = self.kept.targets()
        if target.ndim == 1:  # One number for a sample.
            return self.link(target[self.valid(target)].nanmedian()[None])
        if not len(target):
            return self.link(target.new_full(target.shape[1:], torch.nan))
        values = torch.where(self.valid(target)[:, None], target, torch.nan)
        overall = values.transpose(0, 1).flatten(1).nanmedian(1).values.view(-1, 1, 1)
        middle = values.nanmedian(0).values
        return self.link(torch.where(middle.isnan(), overall, middle))


class Best(Blind):
    """The better of two predictions by the task's own score: what ``prior`` finds, and the same value everywhere.

    Both are scored on the first `COMPARED_IMAGES` labelled training images.

    Args:
        valid: Which elements carry a label.
        prior: Finds the first prediction, of logits.
        metric: Returns a fresh metric, whose first protocol decides.
    """

    def __init__(self, valid: Valid, prior: Blind, metric: Callable[[], Metric]):
        self.prior, self.metric, self.kept = prior, metric, First(valid, lambda numbers: COMPARED_IMAGES)

    def update(self, target: Tensor) -> None:
        """Adds the labels of a batch to the prior, and keeps the first ones."""
        self.prior.update(target)
        self.kept.update(target)

    def reduce(self) -> None:
        """Adds the prior over ranks, and collects what they have kept."""
        self.prior.reduce()
        self.kept.reduce()

    def prediction(self) -> Tensor:
        """Returns the prior, unless a probability of one half everywhere scores better."""
        prior = self.prior.prediction()
        constant = torch.zeros_like(prior)
        if not len(self.kept.targets()):
            return prior
        return constant if self._merit(constant) > self._merit(prior) else prior

    def _merit(self, prediction: Tensor) -> float:
        """Returns the score over the images that all ranks have kept, signed so that more is better."""
        metric: Any = self.metric()
        # The metric adds its ranks itself, so each of them scores a part.
        part = self.kept.targets()[distributed.rank() :: distributed.world_size()]
        for target in part:
            metric.update(prediction[None].float(), target[None])
        protocol = metric.protocols[0]
        value = metric.compute()[protocol.id]
        return value if protocol.higher_is_better else -value


class First:
    """The first labelled targets of a split, whichever rank saw them.

    Rank r of w sees the samples r, r + w, r + 2w, ... in this order.

    Args:
        valid: Which elements carry a label.
        limit: Returns how many targets to keep, given the numbers in one.
    """

    def __init__(self, valid: Valid, limit: Callable[[int], int]):
        self.valid, self.limit = valid, limit
        self.seen, self.shape = 0, torch.Size()
        self.kept: dict[int, Tensor] = {}

    def update(self, target: Tensor) -> None:
        """Keeps the labelled targets of a batch while there is room."""
        self.shape = target.shape[1:]
        labelled = self.valid(target).reshape(len(target), -1).any(1).tolist()
        for one, known in zip(target, labelled, strict=True):
            if known and len(self.kept) < self._room():
                self.kept[self.seen * distributed.world_size() + distributed.rank()] = one.float().clone()
            self.seen += 1

    def reduce(self) -> None:
        """Gives every rank the targets with the lowest numbers."""
        numbers = torch.zeros(distributed.world_size(), self._room(), dtype=torch.int64)
        own = torch.tensor(list(self.kept), dtype=torch.int64)
        numbers[distributed.rank(), : len(own)] = own + 1  # 0 marks a free place.
        every = distributed.sum_(numbers).flatten()
        first = sorted((every[every > 0] - 1).tolist())[: self._room()]
        found = torch.zeros(len(first), *self.shape)
        for place, number in enumerate(first):
            if number in self.kept:
                found[place] = self.kept[number]
        self.kept = dict(zip(first, distributed.sum_(found), strict=True))

    def targets(self) -> Tensor:
        """Returns (N, ...) float32."""
        return torch.stack(list(self.kept.values())) if self.kept else torch.zeros(0, *self.shape)

    def _room(self) -> int:
        return self.limit(max(1, self.shape.numel()))


# ---- from means to raw predictions ----------------------------------------------------------------------------------


def class_logits(shares: Tensor, count: Tensor) -> Tensor:
    """Returns scores (C, ...) of the shares of C classes: the highest is that of the most frequent class."""
    return shares.clamp(min=RAREST).log()


def logits(share: Tensor, count: Tensor | None = None) -> Tensor:
    """Returns the logits of the shares of positives."""
    share = share.clamp(RAREST, 1 - RAREST)
    return share.log() - (1 - share).log()


def log_rate(means: Tensor, count: Tensor) -> Tensor:
    """Returns the logarithm (1,) of a mean count."""
    return means.clamp(min=RAREST).log()


def micro_f1_logits(shares: Tensor, count: Tensor) -> Tensor:
    """Returns 1 for the labels of the best fixed set and -1 for all others, (K,).

    Among sets of a given size, F1 = 2 TP / (predicted + true) is highest for one of the most frequent labels, so one
    set of every size is compared. This is exact if all labels are known equally often.

    Args:
        shares: (1, K) share of rows in which each label holds.
        count: (K,) number of known labels.
    """
    share = shares[0].nan_to_num()
    order = share.argsort(descending=True, stable=True)
    sizes = torch.arange(1, len(share) + 1, dtype=share.dtype)
    f1 = 2 * share[order].cumsum(0) / (sizes + share.sum())
    chosen = torch.full_like(share, -1.0)
    chosen[order[: int(f1.argmax()) + 1]] = 1.0
    return chosen


def soft_logits(means: Tensor, count: Tensor) -> Tensor:
    """Returns scores of a mean distribution; the highest is that of the class which is most often the likeliest.

    Args:
        means: (2C,) mean probability of every class, then the share of images in which it is the likeliest.
        count: () number of images.
    """
    shares, likeliest = means.chunk(2)
    return _with_first(shares, likeliest.argmax(0))


def overlap_logits(shares: Tensor, count: Tensor) -> Tensor:
    """Returns scores whose highest class has the best mean IoU on the training labels, pooled over the split.

    The most frequent class is the best guess for one pixel, but mean IoU weighs rare classes as much as frequent ones:
    a class that nowhere is the most frequent would score 0. So every pixel takes the class that adds most to the mean
    IoU, linearised at the present map; what a pixel adds is averaged over rounds, and the best map of all is kept.

    Args:
        shares: (C, H, W) share of every class.
        count: (H, W) number of labels.
    """
    labels, mode = shares.nan_to_num() * count, shares.argmax(0)
    truth, classes = labels.flatten(1).sum(1), len(shares)
    chosen, best, best_score = mode, mode, -1.0
    more, less = torch.zeros_like(truth), torch.zeros_like(truth)
    for turn in range(ROUNDS):
        found = labels.gather(0, chosen[None])
        hit = torch.bincount(chosen.flatten(), found.flatten(), classes)
        union = torch.bincount(chosen.flatten(), count.flatten(), classes) + truth - hit
        score = float((hit / union)[union > 0].mean())
        if score > best_score:
            best, best_score = chosen, score
        union = union.clamp(min=1)
        more += (1 / union + hit / union**2 - more) / (turn + 1)
        less += (hit / union**2 - less) / (turn + 1)
        gain = labels * more[:, None, None] - count * less[:, None, None]
        chosen = torch.where(count > 0, gain.argmax(0), mode)
    return _with_first(shares, best)


def overlap_logit(share: Tensor, count: Tensor) -> Tensor:
    """Returns logits of the shares of positives, moved so that the cut at 0 is the one with the best mean IoU.

    The score is that of both classes, pooled over the training labels.

    Args:
        share: (1, H, W) share of positives.
        count: (H, W) number of labels.
    """
    values, place = share.flatten().unique(return_inverse=True)

    def at_least(numbers: Tensor) -> Tensor:
        """Returns their sums over the pixels whose share is at least each of the values, and over none."""
        return F.pad(torch.zeros_like(values).index_add(0, place, numbers.flatten()).flip(0).cumsum(0).flip(0), (0, 1))

    right, wrong = at_least(share * count), at_least((1 - share) * count)
    positive, negative = right[0], wrong[0]
    both = torch.stack([right / (positive + wrong), (negative - wrong) / (negative + positive - right)])
    at = int(both.nanmean(0).argmax())
    around = F.pad(values, (1, 1))  # 0 below the lowest share, 1 above the highest.
    around[-1] = 1
    return logits(share) - logits((around[at] + around[at + 1]) / 2)


def unit(means: Tensor, count: Tensor) -> Tensor:
    """Returns mean vectors (3, H, W) with length 1."""
    return F.normalize(means, dim=0)


def _with_first(shares: Tensor, chosen: Tensor) -> Tensor:
    """Returns scores (C, ...) of shares, in which the chosen class (...) has changed places with the highest."""
    chosen, top = chosen[None], shares.argmax(0, keepdim=True)
    highest, own = shares.gather(0, top), shares.gather(0, chosen)
    scores = shares.scatter(0, chosen, highest).scatter(0, top, own).clamp(min=RAREST).log()
    # Where the highest had an equal, the chosen class is still the only first.
    return scores.scatter_add(0, chosen, torch.full_like(highest, 1e-3))
