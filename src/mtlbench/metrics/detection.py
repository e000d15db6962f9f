"""Mean average precision of boxes at one IoU, as COCO counts it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mtlbench import distributed
from mtlbench.metrics.protocol import higher

Array = NDArray[Any]

IOU = 0.5
"""Lowest IoU at which a predicted box matches a true one."""

MOST = 100
"""Number of boxes per class and image that count: those with the highest scores."""

RECALLS = np.linspace(0, 1, 101)
"""Recalls at which precision is averaged."""


class _Decodes(Protocol):
    def decode(self, prediction: Tensor) -> Tensor: ...


class AveragePrecision(Metric):
    """Mean average precision at IoU 0.5, over the classes that occur: COCO's AP50, all areas, 100 boxes.

    In every image and class, found boxes take true ones in the order of their scores: each the free one with the
    largest IoU of at least 0.5. Those without any are wrong, unless half of their area lies in a box to ignore. Over
    the whole set, in the order of scores, precision at a recall is the best at this or any higher recall; it is
    averaged over the recalls 0, 0.01, ..., 1. Equal scores keep the order of images, whatever rank has seen them.

    Args:
        task: Its ``decode`` turns raw predictions into rows of x0, y0, x1, y1, score and class. Boxes without an area
            do not count.
        classes: Number of classes.
    """

    full_state_update = False
    protocols = higher("detection_map50@1")
    found: list[Tensor]
    truths: Tensor
    images: Tensor
    broken: Tensor

    def __init__(self, task: _Decodes, classes: int):
        super().__init__()
        self.task = task
        # Flat rows of score, class, whether it is right, number of the image: of one shape even where there are none.
        self.add_state("found", [], dist_reduce_fx="cat")
        self.add_state("truths", torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("broken", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds raw predictions (B, channels, H, W) against rows (B, N, 6); images whose rows are NaN do not count."""
        labelled = ~target[:, 0, 0].isnan()
        self.broken += prediction[labelled].isnan().any().long()
        boxes, truth = (x.double().cpu().numpy() for x in (self.task.decode(prediction), target))
        # Rank r of w sees the images r, r + w, r + 2w, ... in this order.
        first = int(self.images) * distributed.world_size() + distributed.rank()
        for place, known in enumerate(labelled.tolist()):
            if known:
                number = first + place * distributed.world_size()
                self._add(_boxes(boxes[place]), _boxes(truth[place]), number)
        self.images += len(labelled)

    def _add(self, boxes: Array, truth: Array, number: int) -> None:
        things = truth[truth[:, 4] > 0]
        self.truths += torch.bincount(torch.from_numpy(things[:, 5].astype(np.int64)), minlength=len(self.truths)).to(
            self.truths.device
        )
        for index in np.unique(boxes[:, 5]):
            own = boxes[boxes[:, 5] == index]
            own = own[np.argsort(-own[:, 4], kind="stable")][:MOST]
            others = truth[truth[:, 5] == index]
            right = matches(own[:, :4], others[others[:, 4] > 0, :4], others[others[:, 4] == 0, :4])
            kept = right >= 0
            rows = np.stack([own[kept, 4], own[kept, 5], right[kept], np.full(kept.sum(), number)], 1)
            self.found.append(torch.from_numpy(rows.astype(np.float32)).flatten().to(self.truths.device))

    def compute(self) -> dict[str, float]:
        """Returns the mean in [0, 1]; NaN if no image shows an object, or if a labelled prediction was NaN."""
        if self.broken:
            return {self.protocols[0].id: float("nan")}
        rows = dim_zero_cat(self.found).cpu().numpy().reshape(-1, 4) if len(self.found) else np.zeros((0, 4))
        rows = rows[np.lexsort((rows[:, 3], -rows[:, 0]))]
        counts = enumerate(self.truths.tolist())
        scores = [average_precision(rows[rows[:, 1] == index, 2] > 0, count) for index, count in counts if count]
        return {self.protocols[0].id: float(np.mean(scores)) if scores else float("nan")}


def _boxes(rows: Array) -> Array:
    """Returns the rows whose box has an area."""
    return rows[(rows[:, 2] > rows[:, 0]) & (rows[:, 3] > rows[:, 1])]


def matches(boxes: Array, things: Array, ignored: Array) -> NDArray[np.int64]:
    """Returns for each predicted box 1 if it matches a true one, 0 if not, and -1 if it is ignored.

    Args:
        boxes: (N, 4) corners, highest score first.
        things: (M, 4) true boxes, each to be taken once; of equally good ones the last.
        ignored: (K, 4) regions in which boxes do not count.
    """
    overlap = areas(boxes, things) / np.maximum(_area(boxes)[:, None] + _area(things) - areas(boxes, things), 1e-300)
    inside = (areas(boxes, ignored) / _area(boxes)[:, None] >= IOU).any(1)
    right, free = np.where(inside, -1, 0), np.ones(len(things), bool)
    for row, own in enumerate(overlap):
        open_ones = np.where(free, own, 0)
        if len(things) and open_ones.max() >= IOU:
            free[len(things) - 1 - open_ones[::-1].argmax()] = False
            right[row] = 1
    return right


def areas(one: Array, other: Array) -> Array:
    """Returns the areas (N, M) of the intersections of N boxes with M boxes."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    return (high - low).clip(0).prod(-1)


def _area(boxes: Array) -> Array:
    return (boxes[:, 2:] - boxes[:, :2]).prod(-1)


def average_precision(right: NDArray[np.bool_], count: int) -> float:
    """Returns the mean precision over `RECALLS`.

    Args:
        right: (N,) whether each found box is right, highest score first.
        count: True boxes, >= 1.
    """
    hits = right.cumsum()
    recall, precision = hits / count, hits / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.append(best, 0)[np.searchsorted(recall, RECALLS)].mean())
