"""One random flip, scaling and rotation for an image and all its dense labels.

In numpy and Pillow: torch's threads would fight with the training step for the cores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtlbench.tasks import IGNORE

Matrix = tuple[float, float, float, float, float, float]

AXES = {"left-up": 1, "right-down": 1, "right-up": -1, "left-down": -1}
"""Where channels 0 and 1 of the normals point -> sign of their turn when the picture turns counter-clockwise."""


@dataclass(frozen=True)
class Warp:
    """A flip, then a turn and a scaling about the centre; the size is kept.

    Attributes:
        flip: Mirror left and right, first.
        angle: Turn in degrees, counter-clockwise as seen.
        scale: Factor; above 1 enlarges.
        aspect: Height / width of the original photograph. A stretched image is turned as the photograph would be.
    """

    flip: bool = False
    angle: float = 0.0
    scale: float = 1.0
    aspect: float = 1.0

    @classmethod
    def draw(
        cls, generator: np.random.Generator, *, flip: float, rotation: float, scale: tuple[float, float], aspect: float
    ) -> Warp:
        """Returns a warp with flip probability ``flip``, angle in ±``rotation`` degrees, factor in ``scale``."""
        flipped = bool(generator.random() < flip)
        return cls(flipped, generator.uniform(-rotation, rotation), generator.uniform(*scale), aspect)

    def matrix(self, height: int, width: int) -> Matrix:
        """Returns where output points come from: x' = a x + b y + c, y' = d x + e y + f, in pixels, y down.

        Pixel (0, 0) covers [0, 1] x [0, 1]. Height and width are those of the stretched image.
        """
        cos, sin = math.cos(math.radians(self.angle)) / self.scale, math.sin(math.radians(self.angle)) / self.scale
        shear = self.aspect * width / height  # a turn of the photograph is a sheared turn of the stretched image
        mirror = -1 if self.flip else 1
        a, b, d, e = mirror * cos, -mirror * sin * shear, sin / shear, cos
        x, y = width / 2, height / 2
        return a, b, x - a * x - b * y, d, e, y - d * x - e * y

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Returns the warped image, cubic, black outside: (3, H, W)."""
        height, width = image.shape[1:]
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        matrix = self.matrix(height, width)
        warped = picture.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.array(warped).transpose(2, 0, 1))

    def normals(self, normals: NDArray[np.float32], axes: str) -> NDArray[np.float32]:
        """Returns the vectors as the warped scene has them, pixels still in place: (3, H, W).

        Args:
            normals: (3, H, W), 255 = ignore.
            axes: Key of `AXES`.
        """
        angle = math.radians(self.angle) * AXES[axes]
        across, along, near = normals
        if self.flip:
            across = -across
        turned = np.stack([
            across * math.cos(angle) + along * math.sin(angle),
            along * math.cos(angle) - across * math.sin(angle),
            near,
        ])  # fmt: skip
        return np.where(normals[:1] == IGNORE, normals, turned).astype(np.float32)


class Nearest:
    """Takes labels at the nearest source pixel of each output pixel.

    Args:
        matrix: `Warp.matrix`.
        height: Of the labels, pixels.
        width: Of the labels, pixels.
    """

    def __init__(self, matrix: Matrix, height: int, width: int):
        a, b, c, d, e, f = matrix
        x, y = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
        column = np.floor(a * x + (b * y + c)).astype(np.intp)
        row = np.floor(d * x + (e * y + f)).astype(np.intp)
        self.outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
        self.index = np.where(self.outside, 0, row * width + column)

    def __call__(self, label: NDArray, fill: int) -> NDArray:
        """Returns a warped label (..., H, W), ``fill`` outside."""
        taken = label.reshape(*label.shape[:-2], -1).take(self.index, axis=-1)
        taken[..., self.outside] = fill
        return taken
