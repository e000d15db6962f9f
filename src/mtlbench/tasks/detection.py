"""Detection: boxes around things of several classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from mtlbench import visualise
from mtlbench.metrics import AveragePrecision
from mtlbench.tasks.base import Array
from mtlbench.tasks.heat_maps import PRIOR, Detail, HeatMaps
from mtlbench.tasks.peaks import at, cells, gaussian_radius, peaks, present, splat
from mtlbench.visualise import Picture


@dataclass(frozen=True)
class Detection(HeatMaps):
    """Boxes with a class. Target: float32 (B, most, 6): x0, y0, x1, y1, score, class; see `HeatMaps`.

    Channels: a heat map for each class, whose peaks are the centres of boxes; width and height of the box in cells; and
    where in its cell the centre lies. Loss: focal loss of the heat maps + 0.1 · absolute error of the size + absolute
    error of the place. Score: mean average precision at IoU 0.5 (`AveragePrecision`).

    Attributes:
        classes: Number of classes; there is none for the background.
        class_names: Names for figures; may be empty.
    """

    classes: int = 1
    class_names: tuple[str, ...] = field(default=(), compare=False)
    kind: ClassVar[str] = "detection"
    size_weight: ClassVar[float] = 0.1

    @property
    def columns(self) -> int:  # noqa: D102
        return 6

    @property
    def heats(self) -> int:  # noqa: D102
        return self.classes

    @property
    def channels(self) -> int:  # noqa: D102
        return self.classes + 4

    @property
    def branches(self) -> tuple[int, ...]:
        """Heat maps, size, and offset in the cell."""
        return self.classes, 2, 2

    def metric(self) -> Metric:  # noqa: D102
        return AveragePrecision(self, self.classes)

    def fault(self, target: Tensor) -> str | None:  # noqa: D102
        if fault := super().fault(target):
            return fault
        classes = target[present(target)][:, 5]
        bad = (classes < 0) | (classes >= self.classes) | (classes != classes.round())
        return f"classes are 0..{self.classes - 1}. Found {float(classes[bad][0]):g}" if bad.any() else None

    def heat(self, target: Tensor, size: tuple[int, int]) -> Tensor:  # noqa: D102
        cell, _, extent = self._places(target, size)
        radius = gaussian_radius(extent[..., 0], extent[..., 1]).floor()
        return splat(cell, radius, self.things(target), target[..., 5].long(), self.classes, size)

    def details(self, target: Tensor, size: tuple[int, int]) -> list[Detail]:  # noqa: D102
        cell, rest, extent = self._places(target, size)
        shown, first = self.things(target), self.classes
        return [
            Detail(slice(first, first + 2), cell, extent, shown, self.size_weight),
            Detail(slice(first + 2, first + 4), cell, rest, shown, 1.0),
        ]

    def _places(self, target: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the cells of centres, their offsets in these, and the sizes of boxes in cells, (B, most, 2) each."""
        low, high = target[..., :2], target[..., 2:4]
        return *cells((low + high) / 2, self.stride, size), (high - low) / self.stride

    def decode(self, prediction: Tensor) -> Tensor:
        """Returns the boxes at the highest peaks, (B, most, 6), highest first; without a peak, the area is 0."""
        grid = self.grid(prediction)
        score, layer, cell = peaks((grid[:, : self.classes] + PRIOR).sigmoid(), self.most)
        extent, rest = at(grid[:, self.classes :], cell).split(2, -1)
        centre, half = cell + rest, extent.clamp(min=0) / 2
        border = prediction.new_tensor(prediction.shape[:1:-1])
        corners = [
            (self.stride * x).clamp(min=torch.zeros_like(border), max=border) for x in (centre - half, centre + half)
        ]
        found = torch.cat([*corners, score[..., None], layer[..., None].to(score.dtype)], -1)
        return torch.where(score[..., None] > 0, found, 0.0)

    def mark(self, image: Picture, rows: Array) -> Picture:  # noqa: D102
        return visualise.boxes(image, rows[:, :4], rows[:, 5].astype(int), self.classes)
