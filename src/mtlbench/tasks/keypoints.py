"""Keypoints: named points of every person, or of every thing of another class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from mtlbench import visualise
from mtlbench.errors import DataError, unknown_name
from mtlbench.metrics import CorrectKeypoints
from mtlbench.tasks.base import Array
from mtlbench.tasks.geometry import Geometry, LabelOptions
from mtlbench.tasks.heat_maps import PRIOR, SLACK, Detail, HeatMaps
from mtlbench.tasks.peaks import at, cells, gaussian_radius, peaks, present, splat
from mtlbench.visualise import Picture

CERTAIN = 0.1
"""Lowest heat of a peak to which a keypoint is moved."""

AROUND = 0.25
"""Share of its longer side by which the box around a pose is enlarged before peaks are searched for in it."""


@dataclass(frozen=True)
class Keypoints(HeatMaps):
    """The J keypoints of every person. Target: float32 (B, most, 5 + 3J); see `HeatMaps`.

    A row holds x0, y0, x1, y1, score, and x, y and visibility of each keypoint: 0 = not labelled, 1 = hidden, 2 = seen.

    Channels: a heat map of the centres of boxes; a heat map of each keypoint; where the keypoints lie, seen from the
    cell of the centre; and where in its cell any keypoint lies. Loss: focal loss of the heat map of centres, and, each
    divided by J, the focal loss of the maps of keypoints, and the absolute errors of the places, summed over labelled
    keypoints. Score: share of correct keypoints (`CorrectKeypoints`).

    Attributes:
        names: Names of the J keypoints.
        pairs: Pairs of indices that are exchanged when the picture is mirrored, such as left and right knee.
        limbs: Pairs of indices that a line connects in figures.
        share: How far from its place a keypoint may be, as a share of the longer side of the box.

    Raises:
        DataError: A pair or a limb holds an index of no keypoint.
    """

    names: tuple[str, ...] = ("point",)
    pairs: tuple[tuple[int, int], ...] = ()
    limbs: tuple[tuple[int, int], ...] = ()
    share: float = 0.2
    kind: ClassVar[str] = "keypoints"

    def __post_init__(self) -> None:
        for what in ("pairs", "limbs"):
            for index in (i for pair in getattr(self, what) for i in pair):
                if not 0 <= index < len(self.names):
                    raise DataError(
                        f"Keypoints {self.name!r}: {what} hold indices of keypoints, 0..{len(self.names) - 1}. "
                        f"Found {index}."
                    )

    @property
    def columns(self) -> int:  # noqa: D102
        return 5 + 3 * len(self.names)

    @property
    def heats(self) -> int:  # noqa: D102
        return 1 + len(self.names)

    @property
    def channels(self) -> int:  # noqa: D102
        return 1 + 3 * len(self.names) + 2

    @property
    def branches(self) -> tuple[int, ...]:
        """Heat map of centres, heat maps of keypoints, their offsets from the centre, and offsets in cells."""
        return 1, len(self.names), 2 * len(self.names), 2

    def metric(self) -> Metric:  # noqa: D102
        return CorrectKeypoints(self, share=self.share)

    def row(
        self, box: tuple[float, float, float, float], points: Mapping[str, tuple[float, float, float]]
    ) -> list[float]:
        """Returns the row of a person, for `table`, from x, y and visibility by name; what is absent is not labelled.

        Raises:
            DataError: There is no keypoint of a name.
        """
        for name in points:
            if name not in self.names:
                raise DataError(unknown_name(f"keypoint of {self.name}", name, self.names))
        return [*box, 1.0, *(number for name in self.names for number in points.get(name, (0.0, 0.0, 0.0)))]

    def fault(self, target: Tensor) -> str | None:  # noqa: D102
        if fault := super().fault(target):
            return fault
        _, seen = _points(target[present(target)])
        bad = (seen != 0) & (seen != 1) & (seen != 2)
        return f"visibilities are 0, 1 or 2. Found {float(seen[bad][0]):g}" if bad.any() else None

    def fault_within(self, target: Tensor, height: int, width: int) -> str | None:
        """Finds labelled keypoints outside the image, in addition to what the other rules find."""
        if fault := super().fault_within(target, height, width):
            return fault
        places, seen = _points(target[present(target)])
        limit = places.new_tensor([width, height]) + SLACK
        outside = ((places < -SLACK) | (places > limit)).any(-1) & (seen > 0)
        if not outside.any():
            return None
        name, place = self.names[int(outside.nonzero()[0, 1])], [round(x, 2) for x in places[outside][0].tolist()]
        return (
            f"keypoints lie in the image, 0..{width} x 0..{height} pixels, or have visibility 0. "
            f"Found {name} at {place}"
        )

    def warp(self, target: Array, geometry: Geometry, options: LabelOptions) -> Array:
        """Moves boxes and keypoints; those that leave the picture are no longer labelled."""
        moved = super().warp(target, geometry, options)
        points = moved[:, 5:].reshape(len(moved), -1, 3)
        kept = points[..., 2] > 0
        places = geometry.points(points[..., :2])
        kept &= ((places >= 0) & (places <= np.array([geometry.width, geometry.height]))).all(-1)
        points = np.where(kept[..., None], np.concatenate([places, points[..., 2:]], -1), 0)
        if geometry.flip:
            order = np.arange(len(self.names))
            for one, other in self.pairs:
                order[[one, other]] = other, one
            points = points[:, order]
        moved[:, 5:] = np.where(np.isnan(target[:, 5:]), np.nan, points.reshape(len(moved), -1))
        return moved

    def heat(self, target: Tensor, size: tuple[int, int]) -> Tensor:  # noqa: D102
        persons, (places, seen), joints = self.things(target), _points(target), len(self.names)
        low, high = target[..., :2], target[..., 2:4]
        extent = (high - low) / self.stride
        radius = gaussian_radius(extent[..., 0], extent[..., 1]).floor()
        centre = cells((low + high) / 2, self.stride, size)[0]
        zero = torch.zeros_like(centre[..., 0])
        cell = cells(places, self.stride, size)[0].flatten(1, 2)
        shown = (persons[..., None] & (seen > 0)).flatten(1)
        layer = torch.arange(joints, device=target.device).expand_as(seen).flatten(1)
        return torch.cat(
            [
                splat(centre, radius, persons, zero, 1, size),
                splat(cell, radius.repeat_interleave(joints, 1), shown, layer, joints, size),
            ],
            1,
        )

    def heat_weights(self, heat: Tensor) -> Tensor:
        """Returns the weight of each heat map: the maps of keypoints together weigh as much as that of centres."""
        return heat.new_tensor([1.0] + [1 / len(self.names)] * len(self.names))[:, None, None]

    def details(self, target: Tensor, size: tuple[int, int]) -> list[Detail]:  # noqa: D102
        persons, (places, seen), joints = self.things(target), _points(target), len(self.names)
        centre = cells((target[..., :2] + target[..., 2:4]) / 2, self.stride, size)[0]
        shown = persons[..., None] & (seen > 0)
        cell, rest = cells(places, self.stride, size)
        towards, first = places / self.stride - centre[..., None, :], self.heats
        each = [
            Detail(slice(first + 2 * j, first + 2 * j + 2), centre, towards[..., j, :], shown[..., j], 1 / joints)
            for j in range(joints)
        ]
        last = slice(first + 2 * joints, first + 2 * joints + 2)
        return [*each, Detail(last, cell.flatten(1, 2), rest.flatten(1, 2), shown.flatten(1), 1 / joints)]

    def decode(self, prediction: Tensor) -> Tensor:
        """Returns the poses at the highest peaks of the centres, (B, most, 5 + 3J), highest first.

        A keypoint starts where the centre says. The nearest peak of its own heat map that lies in the enlarged box
        around the pose and reaches a heat of `CERTAIN` replaces it; its visibility is then 2, else 1.
        """
        grid, joints = self.grid(prediction), len(self.names)
        centres, maps, towards, rest = grid.split((1, joints, 2 * joints, 2), 1)
        score, _, cell = peaks((centres + PRIOR).sigmoid(), self.most)
        start = cell[:, :, None] + at(towards, cell).unflatten(2, (joints, 2))
        low, high = start.amin(2, keepdim=True), start.amax(2, keepdim=True)
        margin = AROUND * (high - low).amax(-1, keepdim=True)
        best = [
            self._moved(start[:, :, j], low - margin, high + margin, maps[:, j : j + 1], rest) for j in range(joints)
        ]
        border = prediction.new_tensor(prediction.shape[:1:-1])
        places = (self.stride * torch.stack([place for place, _ in best], 2)).clamp(torch.zeros_like(border), border)
        seen = torch.stack([moved for _, moved in best], 2)[..., None] + 1
        points = torch.cat([places, seen.to(places.dtype)], -1).flatten(2)
        found = torch.cat([places.amin(2), places.amax(2), score[..., None], points], -1)
        return torch.where(score[..., None] > 0, found, 0.0)

    def _moved(self, start: Tensor, low: Tensor, high: Tensor, heat: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the places (B, K, 2) of one keypoint, and whether they are those of a peak of its map."""
        score, _, cell = peaks((heat + PRIOR).sigmoid(), self.most)
        place = (cell + at(rest, cell))[:, None]
        near = (start[:, :, None] - place).square().sum(-1)
        fits = ((place >= low) & (place <= high)).all(-1) & (score >= CERTAIN)[:, None]
        distance, nearest = near.masked_fill(~fits, torch.inf).min(2)
        peak = place[:, 0].gather(1, nearest[..., None].expand(-1, -1, 2))
        return torch.where(distance.isfinite()[..., None], peak, start), distance.isfinite()

    def scaled(self, found: Tensor, across: float, down: float) -> Tensor:  # noqa: D102
        result = super().scaled(found, across, down)
        result[..., 5::3] *= across
        result[..., 6::3] *= down
        return result

    def mark(self, image: Picture, rows: Array) -> Picture:  # noqa: D102
        return visualise.poses(image, rows[:, 5:].reshape(len(rows), len(self.names), 3), self.limbs)


def _points(target: Tensor) -> tuple[Tensor, Tensor]:
    """Returns places (..., J, 2) and visibilities (..., J)."""
    points = target[..., 5:].unflatten(-1, (-1, 3))
    return points[..., :2], points[..., 2]
