"""`HeatMaps`, the base of tasks whose answer is a set of places, found as the peaks of maps; and their loss.

After CenterNet (https://arxiv.org/abs/1904.07850). A network predicts maps at the size of the image, as for every dense
task. The task reads them on a grid of its own: the mean over squares of ``stride`` pixels.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mtlbench import distributed, visualise
from mtlbench.errors import DataError
from mtlbench.tasks.base import Array, Task
from mtlbench.tasks.blind import Blind, logits
from mtlbench.tasks.geometry import Geometry, LabelOptions
from mtlbench.tasks.peaks import at, focal, present
from mtlbench.visualise import Picture

PRIOR = math.log(0.1 / 0.9)
"""Logit that a raw prediction of 0 stands for: peaks are rare, so a new head should not predict one half everywhere."""

LEFT = 0.3
"""A thing is ignored if less than this share of its box stays in the picture after a crop."""

SLACK = 0.01
"""Pixels by which a box may leave the image: rounding in float32."""

SHOWN = 0.3
"""Lowest score of what is drawn."""


@dataclass(frozen=True)
class HeatMaps(Task):
    """Base of tasks that find things.

    Target: float32 (B, most, columns), one row for each thing: the corners x0, y0, x1, y1 of its box in pixels, where
    pixel (0, 0) covers [0, 1] x [0, 1]; its score; and what the kind adds. The score is 1 for a thing and 0 for one to
    ignore, for example a crowd: it is neither missed if it is not found, nor wrong if it is. A row whose box has no
    area is empty; `table` fills it with zeros. An image may show nothing. One without a label holds NaN throughout.

    Elements are things. An image that shows none counts as one element, so that what is wrongly found in it has weight.

    Attributes:
        most: Largest number of things in an image, and number of things that `decode` finds.
        stride: Pixels between neighbouring positions of the grid.
    """

    most: int = 100
    stride: int = 4

    @property
    @abstractmethod
    def columns(self) -> int:
        """Numbers in a row of the target."""

    @property
    @abstractmethod
    def heats(self) -> int:
        """How many of the channels are heat maps; they come first."""

    @abstractmethod
    def heat(self, target: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns the heat maps of a target without NaN: (B, heats, h, w), 1 at the places of things."""

    @abstractmethod
    def details(self, target: Tensor, size: tuple[int, int]) -> list[Detail]:
        """Returns what is to be predicted at the places of things in addition to heat."""

    def heat_weights(self, heat: Tensor) -> Tensor:
        """Returns the weight of every heat map, (heats, 1, 1) or one number. Default: 1."""
        return heat.new_ones(())

    # ---- targets -----------------------------------------------------------------------------------------------------

    def things(self, target: Tensor) -> Tensor:
        """Returns which rows hold a thing that is not ignored: bool (B, most)."""
        return present(target) & (target[..., 4] > 0)

    def labelled(self, target: Tensor) -> Tensor:
        """Returns which images have a label: bool (B,)."""
        return ~target[:, 0, 0].isnan()

    def valid(self, target: Tensor) -> Tensor:
        """Returns which rows count: bool (B, most). In a labelled image that shows nothing, the first row counts."""
        things = self.things(target)
        nothing = self.labelled(target) & ~things.any(1)
        return torch.cat([things[:, :1] | nothing[:, None], things[:, 1:]], 1)

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.full((self.most, self.columns), torch.nan)

    def table(self, rows: Sequence[Sequence[float]]) -> Tensor:
        """Returns the target of one image, a list of rows as the class describes them; the list may be empty.

        Raises:
            DataError: There are more than `most`, or a row has another length.
        """
        if len(rows) > self.most or any(len(row) != self.columns for row in rows):
            lengths = ", ".join(map(str, sorted({len(row) for row in rows})))
            raise DataError(
                f"{self.name}: an image has at most {self.most} rows of {self.columns} numbers. Found {len(rows)} of "
                f"{lengths}. Raise `most`, or leave out the smallest things."
            )
        target = torch.zeros(self.most, self.columns)
        if rows:
            target[: len(rows)] = torch.tensor([list(row) for row in rows])
        return target

    def fault(self, target: Tensor) -> str | None:  # noqa: D102
        known = target[~target.isnan().flatten(1).all(1)]
        if not known.isfinite().all():
            return "numbers are finite, or NaN throughout for an image without a label. Found NaN or infinity in a part"
        x0, y0, x1, y1, score = known[..., :5].unbind(-1)
        if ((x1 < x0) | (y1 < y0)).any():
            box = known[(x1 < x0) | (y1 < y0)][0, :4].tolist()
            return f"boxes are x0 <= x1, y0 <= y1. Found {_rounded(box)}"
        if ((score != 0) & (score != 1)).any():
            return f"scores are 1, or 0 for a thing to ignore. Found {float(score[(score != 0) & (score != 1)][0]):g}"
        return None

    def fault_within(self, target: Tensor, height: int, width: int) -> str | None:
        """Finds boxes that leave the image, in addition to what `fault` finds."""
        if fault := self.fault(target):
            return fault
        rows = target[present(target)]
        outside = (rows[:, :2] < -SLACK).any(1) | (rows[:, 2] > width + SLACK) | (rows[:, 3] > height + SLACK)
        if not outside.any():
            return None
        return (
            f"boxes lie in the image, 0..{width} x 0..{height} pixels. Found {_rounded(rows[outside][0, :4].tolist())}"
        )

    def store(self, label: Array) -> Array:  # noqa: D102
        return label.astype(np.float32)

    def restore(self, stored: Array) -> Array:  # noqa: D102
        return stored.astype(np.float32)

    def warp(self, target: Array, geometry: Geometry, options: LabelOptions) -> Array:
        """Moves boxes with the picture; a rotated box becomes the axis-aligned one around it, clipped at the border."""
        moved = target.copy()
        x0, y0, x1, y1 = target[:, :4].T
        corners = geometry.points(np.stack([np.stack([x, y], -1) for x in (x0, x1) for y in (y0, y1)]))
        low, high = corners.min(0), corners.max(0)
        border = np.array([geometry.width, geometry.height], np.float32)
        inner_low, inner_high = low.clip(0, border), high.clip(0, border)
        moved[:, :4] = np.concatenate([inner_low, inner_high], 1)
        whole, left = np.prod(high - low, 1), np.prod(inner_high - inner_low, 1)
        moved[left < LEFT * whole, 4] = 0
        moved[left <= 0] = 0
        return moved

    # ---- predictions -------------------------------------------------------------------------------------------------

    def grid(self, prediction: Tensor) -> Tensor:
        """Returns raw predictions (B, channels, H, W) on the task's grid, (B, channels, ⌈H / stride⌉, ⌈W / stride⌉)."""
        return F.avg_pool2d(prediction, self.stride, ceil_mode=True, count_include_pad=False)

    def spread(self, grid: Tensor, height: int, width: int) -> Tensor:
        """Returns the prediction (..., height, width) whose `grid` is the one given."""
        squares = grid.repeat_interleave(self.stride, -2).repeat_interleave(self.stride, -1)
        return squares[..., :height, :width]

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Returns the focal loss of the heat maps, and the weighted absolute errors of the details."""
        labelled = self.labelled(target)[:, None, None, None]
        grid, known = self.grid(torch.where(labelled, prediction, 0.0)), target.nan_to_num().to(prediction.dtype)
        size = (grid.shape[2], grid.shape[3])
        heat = self.heat(known, size)
        counted = labelled & (~self._ignored(known, size) | (heat == 1))
        total = (self.heat_weights(heat) * torch.where(counted, focal(grid[:, : self.heats] + PRIOR, heat), 0.0)).sum()
        for detail in self.details(known, size):
            found = at(grid[:, detail.channels], detail.cell)
            error = (found - detail.wanted).abs().sum(-1)
            total = total + detail.weight * torch.where(detail.shown, error, 0.0).sum()
        return total

    def _ignored(self, target: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns the cells whose middle lies in the box of a thing to ignore: bool (B, 1, h, w)."""
        rows = present(target) & (target[..., 4] == 0)
        y, x = (self.stride * (torch.arange(n, device=target.device) + 0.5) for n in size)
        x0, y0, x1, y1 = (target[..., i, None] for i in range(4))
        across, down = (x >= x0) & (x < x1) & rows[..., None], (y >= y0) & (y < y1)
        return (down[..., :, None] & across[..., None, :]).any(1, keepdim=True)

    def decode_at(self, prediction: Tensor, height: int, width: int) -> Tensor:
        """Returns what is found, with places in pixels of another size."""
        found = self.decode(prediction)
        return self.scaled(found, width / prediction.shape[3], height / prediction.shape[2])

    def scaled(self, found: Tensor, across: float, down: float) -> Tensor:
        """Returns rows with their places multiplied by a factor in either direction."""
        factors = found.new_ones(self.columns)
        factors[:4] = found.new_tensor([across, down, across, down])
        return found * factors

    def blind(self) -> Blind:
        """Returns the mean of the heat maps over images, and of the details over things."""
        return HeatMean(self)

    # ---- pictures ----------------------------------------------------------------------------------------------------

    def draw(self, value: Array, truth: Array | None = None) -> Picture:
        """Draws things on grey, as far as they reach; see `draw_on`."""
        both = np.concatenate([value, value if truth is None else truth])[:, :4]
        width, height = (max(1, math.ceil(np.nan_to_num(both[:, i]).max())) for i in (2, 3))
        return self.draw_on(np.full((height, width, 3), 96, np.uint8), value, truth)

    def draw_on(self, image: Picture, value: Array, truth: Array | None = None) -> Picture:
        """Draws boxes on the image; an image without a label is hatched."""
        if np.isnan(value).any():
            return visualise.hatched(image)
        return self.mark(image, value[(value[:, 2] > value[:, 0]) & (value[:, 4] >= SHOWN)])

    @abstractmethod
    def mark(self, image: Picture, rows: Array) -> Picture:
        """Draws rows on a copy of the image."""


class Detail(NamedTuple):
    """What is to be predicted at cells, in addition to heat.

    Attributes:
        channels: Channels that predict it.
        cell: (B, N, 2) columns and rows of the grid.
        wanted: (B, N, C), in cells.
        shown: (B, N) bool: which count.
        weight: Of the absolute error, summed over C.
    """

    channels: slice
    cell: Tensor
    wanted: Tensor
    shown: Tensor
    weight: float


class HeatMean(Blind):
    """The mean heat maps of the training labels, with the mean details everywhere."""

    def __init__(self, task: HeatMaps):
        self.task, self.size = task, (0, 0)
        details = task.channels - task.heats
        self.heat, self.images = torch.zeros(()), torch.zeros((), dtype=torch.float64)
        self.total, self.count = (torch.zeros(details, dtype=torch.float64) for _ in range(2))

    def frame(self, height: int, width: int) -> None:
        """Takes the size of the images."""
        self.size = height, width
        cells = tuple(-(-side // self.task.stride) for side in self.size)
        self.heat = torch.zeros(self.task.heats, *cells, dtype=torch.float64)

    def update(self, target: Tensor) -> None:
        """Adds the labels of a batch."""
        labelled = self.task.labelled(target)
        known = target[labelled].double()
        size = (self.heat.shape[1], self.heat.shape[2])
        self.images += labelled.sum()
        self.heat += self.task.heat(known, size).sum(0)
        for channels, _, wanted, shown, _ in self.task.details(known, size):
            own = slice(channels.start - self.task.heats, channels.stop - self.task.heats)
            self.total[own] += torch.where(shown[..., None], wanted, 0.0).sum((0, 1))
            self.count[own] += shown.sum()

    def reduce(self) -> None:
        """Adds sums and counts over ranks."""
        for total in (self.heat, self.images, self.total, self.count):
            distributed.sum_(total)

    def prediction(self) -> Tensor:
        """Returns (channels, H, W); NaN without any label."""
        heat = logits(self.heat / self.images) - PRIOR
        details = (self.total / self.count.clamp(min=1))[:, None, None].expand(-1, *heat.shape[1:])
        return self.task.spread(torch.cat([heat, details]), *self.size)


def _rounded(numbers: Any) -> list[float]:
    return [round(number, 2) for number in numbers]
