"""What a task must know of a change of geometry, so that its labels can follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtlbench.visualise import IGNORE


@dataclass(frozen=True)
class LabelOptions:
    """How a recipe wants labels to follow its geometry.

    Attributes:
        background: Class id, saliency or edge of pixels from outside: 255 = ignore, or 0.
        nearer: Whether an enlargement brings the scene nearer, so that depth is divided by it.
        axes: Where channels 0 and 1 of vectors point, such as ``"right-down"``.
        vectors_how: Interpolation of vectors.
    """

    background: int = IGNORE
    nearer: bool = True
    axes: str = "right-down"
    vectors_how: Image.Resampling = Image.Resampling.NEAREST


class Geometry(Protocol):
    """One affine change of a picture: a mirror, then a turn and an enlargement about some point, or a crop.

    `mtlbench.data_modules.dense.warp.Warp` is the implementation.
    """

    @property
    def flip(self) -> bool:
        """Whether left and right are exchanged."""

    @property
    def angle(self) -> float:
        """Turn in degrees, counter-clockwise as seen."""

    @property
    def scale(self) -> float:
        """Enlargement."""

    @property
    def height(self) -> int:
        """Of the new picture, pixels."""

    @property
    def width(self) -> int:
        """Of the new picture, pixels."""

    def points(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Returns where points (..., 2) of the old picture lie in the new one: x, y in pixels."""

    def nearest(self, label: NDArray[Any], fill: float | NDArray[Any]) -> NDArray[Any]:
        """Takes a label (..., H, W) at the nearest old pixel of each new one; ``fill`` outside."""

    def turn(self, normals: NDArray[np.float32], axes: str) -> NDArray[np.float32]:
        """Mirrors and turns vectors (C, H, W), C >= 2, in place of their pixels."""

    def normals(self, normals: NDArray[np.float32], axes: str, how: Image.Resampling) -> NDArray[np.float32]:
        """Moves and turns unit vectors (3, H, W), 255 = ignore; after an interpolation they get length 1 again."""

    def depth(self, values: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
        """Moves values (1, H, W), 255 = ignore, and multiplies them by a factor."""
