"""One affine change of a picture and what it does to each kind of dense label."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from mtlbench.tasks import IGNORE
from mtlbench.tasks.dense import SHORT

Matrix = tuple[float, float, float, float, float, float]
Colour = tuple[int, int, int]

AXES = {"left-up": 1, "right-down": 1, "right-up": -1, "left-down": -1}
"""Where channels 0 and 1 of the normals point -> sign of their turn when the picture turns counter-clockwise."""

BLACK = (0, 0, 0)


@dataclass(frozen=True)
class Warp:
    """Where the pixels of a new picture come from.

    Attributes:
        matrix: x' = a x + b y + c, y' = d x + e y + f, from the new picture to the old, in pixels, y down. Pixel
            (0, 0) covers [0, 1] x [0, 1].
        height: Of the new picture.
        width: Of the new picture.
        flip: Whether left and right are exchanged.
        angle: Turn in degrees, counter-clockwise as seen.
        scale: Enlargement; depth shrinks by it.
        labels: Matrix for labels, where the recipe samples them at other points than the picture.
    """

    matrix: Matrix
    height: int
    width: int
    flip: bool = False
    angle: float = 0.0
    scale: float = 1.0
    labels: Matrix | None = None

    @classmethod
    def about_centre(
        cls, height: int, width: int, *, flip: bool = False, angle: float = 0.0, scale: float = 1.0, aspect: float = 0
    ) -> Warp:
        """Returns a flip, then a turn and a scaling about the centre; the size is kept.

        Args:
            height: Of the picture.
            width: Of the picture.
            flip: Mirror left and right, first.
            angle: Turn in degrees, counter-clockwise.
            scale: Factor; above 1 enlarges.
            aspect: Height / width of the original photograph; 0 = that of the picture. A stretched image is turned as
                the photograph would be.
        """
        cos, sin = math.cos(math.radians(angle)) / scale, math.sin(math.radians(angle)) / scale
        shear = (aspect or height / width) * width / height  # a turn of the photograph is a sheared turn here
        mirror = -1 if flip else 1
        a, b, d, e = mirror * cos, -mirror * sin * shear, sin / shear, cos
        x, y = width / 2, height / 2
        matrix = (a, b, x - a * x - b * y, d, e, y - d * x - e * y)
        return cls(matrix, height, width, flip, angle, scale)

    @classmethod
    def window(
        cls, height: int, width: int, left: float, top: float, *, scale: float = 1.0, flip: bool = False
    ) -> Warp:
        """Returns the window whose upper left corner lies at (left, top) of the old picture, enlarged."""
        step = 1 / scale
        matrix = (-step, 0.0, left + width * step, 0.0, step, top) if flip else (step, 0.0, left, 0.0, step, top)
        return cls(matrix, height, width, flip, scale=scale)

    def image(
        self, image: NDArray[np.uint8], fill: Colour = BLACK, how: Image.Resampling = Image.Resampling.BICUBIC
    ) -> NDArray[np.uint8]:
        """Returns the warped image, ``fill`` outside: (3, H, W)."""
        if self._whole_pixels:
            return self.nearest(image, np.array(fill, np.uint8)[:, None])
        axes = self._axes(*image.shape[1:]) if how == Image.Resampling.BILINEAR else None
        if axes:
            return self._scaled(image, fill, *axes)
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        size, affine = (self.width, self.height), Image.Transform.AFFINE
        warped = picture.transform(size, affine, self.matrix, how, fillcolor=fill)
        return np.ascontiguousarray(np.array(warped).transpose(2, 0, 1))

    def nearest(self, label: NDArray[Any], fill: float | NDArray[Any]) -> NDArray[Any]:
        """Returns a label (..., H, W) taken at the nearest old pixel of each new one, ``fill`` outside."""
        key = label.shape[-2:]
        if key not in self._nearest:
            self._nearest[key] = Nearest(self.labels or self.matrix, self.height, self.width, *key)
        return self._nearest[key](label, fill)

    def points(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Returns where points (..., 2), x and y in pixels, of the old picture lie in the new one."""
        a, b, c, d, e, f = self.labels or self.matrix
        x, y = points[..., 0] - c, points[..., 1] - f
        return np.stack([e * x - b * y, a * y - d * x], -1) / (a * e - b * d)

    def normals(
        self, normals: NDArray[np.float32], axes: str, how: Image.Resampling = Image.Resampling.NEAREST
    ) -> NDArray[np.float32]:
        """Returns the normals of the warped scene, unit vectors, 255 where there is none: (3, H, W).

        Args:
            normals: (3, H, W) of the old picture, 255 = ignore.
            axes: Key of `AXES`.
            how: Nearest, or an interpolation, after which the vectors get length 1 again.
        """
        taken = self.nearest(normals, IGNORE)
        valid = taken[0] != IGNORE
        if how != Image.Resampling.NEAREST and not self._whole_pixels:
            vectors = self._interpolated(normals, how)
            length = np.sqrt((vectors**2).sum(0))
            valid &= length >= SHORT
            taken = vectors / np.maximum(length, SHORT)
        turned = self.turn(taken, axes)
        turned[:, ~valid] = IGNORE
        return turned

    def turn(self, normals: NDArray[np.float32], axes: str) -> NDArray[np.float32]:
        """Returns vectors as the warped scene has them, pixels in place: (3, H, W)."""
        turned = normals.copy()
        if self.flip:
            turned[0] *= -1
        if self.angle:
            angle = math.radians(self.angle) * AXES[axes]
            across, along = turned[0].copy(), turned[1].copy()
            turned[0] = across * math.cos(angle) + along * math.sin(angle)
            turned[1] = along * math.cos(angle) - across * math.sin(angle)
        return turned

    def depth(self, values: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
        """Returns depth, or its inverse, times a factor, 255 = ignore: (1, H, W)."""
        taken = self.nearest(values, IGNORE)
        return taken if factor == 1 else np.where(taken == IGNORE, taken, taken * np.float32(factor))

    def within(self, frame: tuple[int, int, int, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Returns which new rows and columns show a part (top, left, height, width) of the old picture; no turns."""
        a, _, c, _, e, f = self.matrix
        top, left, height, width = frame
        x, y = a * (np.arange(self.width) + 0.5) + c, e * (np.arange(self.height) + 0.5) + f
        return (y >= top) & (y < top + height), (x >= left) & (x < left + width)

    def _axes(self, rows: int, columns: int) -> tuple[Axis, Axis] | None:
        """Returns what of either axis shows, None if it does not start at a whole pixel of the old picture."""
        a, b, c, d, e, f = self.matrix
        if b or d or abs(a) != e:
            return None
        left = c + a * self.width if a < 0 else c  # as if not mirrored
        down, across = Axis.of(e, f, self.height, rows), Axis.of(e, left, self.width, columns)
        # Where the size would not change, torch copies and ignores the scale.
        if not down or not across or any(int(len(axis.source) / e) == len(axis.source) for axis in (down, across)):
            return None
        return down, across

    def _scaled(self, image: NDArray[np.uint8], fill: Colour, down: Axis, across: Axis) -> NDArray[np.uint8]:
        """Returns the image enlarged without a turn: several times as fast as by an affine map.

        At the upper left border of a crop, pixels beyond it do not count.
        """
        window = torch.from_numpy(image.take(down.source, axis=1).take(across.source, axis=2))
        scale = 1 / self.matrix[4]
        large = functional.interpolate(window[None], scale_factor=(scale, scale), mode="bilinear")[0].numpy()
        whole = np.empty((3, self.height, self.width), np.uint8)
        whole[:] = np.array(fill, np.uint8)[:, None, None]
        whole[:, down.shown, across.shown] = large[:, : down.size, : across.size]
        return np.ascontiguousarray(whole[:, :, ::-1]) if self.matrix[0] < 0 else whole

    def _interpolated(self, normals: NDArray[np.float32], how: Image.Resampling) -> NDArray[np.float32]:
        size, affine = (self.width, self.height), Image.Transform.AFFINE
        zeroed = np.where(normals == IGNORE, np.float32(0), normals)
        matrix = self.labels or self.matrix
        return np.stack([np.array(Image.fromarray(c).transform(size, affine, matrix, how)) for c in zeroed])

    @cached_property
    def _nearest(self) -> dict[Any, Nearest]:
        return {}

    @cached_property
    def _whole_pixels(self) -> bool:
        """Whether the map only flips and shifts by whole pixels, so that nothing needs interpolation."""
        a, b, c, d, e, f = self.matrix
        return abs(a) == e == 1 and b == d == 0 and c == round(c) and f == round(f) and self.labels is None


class Axis(NamedTuple):
    """What of one axis shows in the new picture.

    Attributes:
        shown: New pixels that show the old picture.
        source: Old pixels that they need, in order; the last may repeat.
        size: Length of ``shown``.
    """

    shown: slice
    source: NDArray[np.intp]
    size: int

    @classmethod
    def of(cls, step: float, start: float, size: int, limit: int) -> Axis | None:
        """Returns the axis of x' = step x + start, None if the first shown pixel is not the first of an old one."""
        first = max(0, math.ceil(-start / step - 1e-6))
        count = min(size, math.floor((limit - start) / step + 0.5 - 1e-6)) - first
        origin = step * first + start
        if count < 1 or abs(origin - round(origin)) > 1e-6:
            return None
        needed = math.ceil(count * step) + 1
        source = np.arange(round(origin), round(origin) + needed).clip(0, limit - 1)
        return cls(slice(first, first + count), source, count)


class Nearest:
    """Takes labels at the nearest source pixel of each output pixel.

    Args:
        matrix: `Warp.matrix`.
        height: Of the new picture, pixels.
        width: Of the new picture, pixels.
        rows: Of the old picture, pixels; default: as the new.
        columns: Of the old picture, pixels.
    """

    def __init__(self, matrix: Matrix, height: int, width: int, rows: int = 0, columns: int = 0):
        a, b, c, d, e, f = matrix
        rows, columns = rows or height, columns or width
        x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
        self.upright = b == d == 0
        if self.upright:
            column, row = np.floor(a * x + c).astype(np.intp), np.floor(e * y[:, 0] + f).astype(np.intp)
            self.row, self.column = row.clip(0, rows - 1), column.clip(0, columns - 1)
            self.outside_rows, self.outside_columns = self.row != row, self.column != column
            return
        column = np.floor(a * x + (b * y + c)).astype(np.intp)
        row = np.floor(d * x + (e * y + f)).astype(np.intp)
        self.outside = (column < 0) | (column >= columns) | (row < 0) | (row >= rows)
        self.index = np.where(self.outside, 0, row * columns + column)

    def __call__(self, label: NDArray[Any], fill: float | NDArray[Any]) -> NDArray[Any]:
        """Returns a warped label (..., H, W), ``fill`` (a number, or (..., 1)) outside."""
        if self.upright:  # rows and columns one after the other: several times as fast
            taken = label.take(self.row, axis=-2).take(self.column, axis=-1)
            if self.outside_rows.any():
                taken[..., self.outside_rows, :] = fill if np.isscalar(fill) else np.asarray(fill)[..., None]
            if self.outside_columns.any():
                taken[..., self.outside_columns] = fill if np.isscalar(fill) else np.asarray(fill)[..., None]
            return taken
        taken = label.reshape(*label.shape[:-2], -1).take(self.index, axis=-1)
        taken[..., self.outside] = fill
        return taken
