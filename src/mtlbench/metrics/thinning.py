"""Thins edge maps to one pixel: non-maximum suppression, then removal of weak pixels. Does not import torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

SMOOTHING = 2.0
"""Standard deviation, in pixels, of the Gaussian over which the direction of an edge is averaged."""

MARGIN = 1.01
"""A pixel is suppressed if a neighbour is stronger by more than this factor."""

_AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
"""The eight neighbours (row, column) in cyclic order; number i has bit i of a neighbourhood's code."""


def suppress(probability: Floats, lowest: float) -> Mask:
    """Returns the pixels (H, W) of at least ``lowest`` that no neighbour across the edge exceeds by `MARGIN`.

    Across is the direction in which the map changes most, in the mean around the pixel (structure tensor). The two
    neighbours lie one pixel away on either side, between pixels linearly interpolated, 0 outside the map.

    Args:
        probability: (H, W) in [0, 1], at least 2 x 2.
        lowest: Pixels below it are never kept.
    """
    rows, columns = np.nonzero(probability >= lowest)
    dy, dx = np.gradient(probability)
    yy, xx, xy = (ndimage.gaussian_filter(product, SMOOTHING)[rows, columns] for product in (dy * dy, dx * dx, dx * dy))
    across = 0.5 * np.arctan2(2 * xy, xx - yy)
    down, right = np.sin(across), np.cos(across)
    sides = [
        ndimage.map_coordinates(
            probability, [rows + sign * down, columns + sign * right], order=1, mode="grid-constant"
        )
        for sign in (1, -1)
    ]
    kept = np.maximum(*sides) <= MARGIN * probability[rows, columns]
    mask = np.zeros(probability.shape, bool)
    mask[rows[kept], columns[kept]] = True
    return mask


def thin(mask: Mask, level: NDArray[np.integer], height: Floats) -> Mask:
    """Returns the mask without its superfluous pixels, the weakest removed first, until none is left.

    A pixel is superfluous if its neighbours in the mask are connected without it and it ends no line (Guo and Hall,
    1989, one pixel at a time). Lines keep their ends, and connected parts stay connected.

    Args:
        mask: (H, W).
        level: (H, W) strength; lower levels go first.
        height: (H, W) orders pixels of one level, lower first: the border of a plateau before its middle.
    """
    mask = np.pad(mask, 1)
    pixels = np.flatnonzero(mask[1:-1, 1:-1])
    # Rounded, so that two maps that differ by rounding alone are thinned alike.
    pixels = pixels[np.lexsort((pixels, np.round(height.ravel()[pixels], 9), level.ravel()[pixels]))]
    y, x = np.divmod(pixels, level.shape[1])
    order: list[int] = ((y + 1) * mask.shape[1] + x + 1).tolist()
    code, steps = _codes(mask), [dy * mask.shape[1] + dx for dy, dx in _AROUND]
    around = [(step, 1 << (i + 4) % 8) for i, step in enumerate(steps)]
    inside = mask.ravel()
    left = order
    while True:
        order, left = left, []
        for pixel in order:
            if _SUPERFLUOUS[code[pixel]]:
                inside[pixel] = False
                for step, bit in around:
                    code[pixel + step] &= ~bit
            else:
                left.append(pixel)
        if len(left) == len(order):
            return mask[1:-1, 1:-1]


def _codes(mask: Mask) -> list[int]:
    """Returns, for every pixel of a padded mask, which of its neighbours are set."""
    codes = np.zeros(mask.shape, np.int64)
    for bit, (dy, dx) in enumerate(_AROUND):
        codes |= np.roll(mask, (-dy, -dx), (0, 1)).astype(np.int64) << bit
    codes[~mask] = 0
    return codes.ravel().tolist()


def _superfluous(code: int) -> bool:
    near = [bool(code >> i & 1) for i in range(8)]
    sides = range(1, 8, 2)
    # Parts into which the neighbours fall; 0 stands for none, and for a pixel inside.
    parts = sum(not near[i] and (near[(i + 1) % 8] or near[(i + 2) % 8]) for i in sides)
    pairs = min(
        sum(near[i] or near[(i + 1) % 8] for i in sides),
        sum(near[i - 1] or near[i] for i in sides),
    )
    return parts == 1 and pairs >= 2


_SUPERFLUOUS = [_superfluous(code) for code in range(256)]
