"""Boundaries of a label map, one pixel wide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def boundaries(labels: NDArray[np.integer]) -> Mask:
    """Returns the pixels that differ from one of their four neighbours, on both sides of a border.

    The non-zero pixels of the four-neighbour Laplacian, but by equality: ids are names, so 4 between 3 and 5 must
    not cancel out as it does in the sum.

    Args:
        labels: (H, W), any integer type.

    Returns:
        (H, W) bool.
    """
    found = np.zeros(labels.shape, dtype=bool)
    rows, columns = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    found[1:] |= rows
    found[:-1] |= rows
    found[:, 1:] |= columns
    found[:, :-1] |= columns
    return found


def thin(mask: Mask) -> Mask:
    """Returns ``mask`` worn down to lines about one pixel wide, with the same connected pieces.

    Guo and Hall's two-step parallel thinning (1989) as stated by Lam, Lee and Suen (1992, p. 879), the rule
    behind MATLAB's ``bwmorph(..., 'thin')`` and the reference loaders' edge maps.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) bool, a subset of ``mask``.
    """
    current = np.pad(mask, 1)  # what lies outside the image is background
    while True:
        before = current.copy()
        for first_step in (True, False):
            current[1:-1, 1:-1] &= ~_removable(current, first_step)
        if np.array_equal(current, before):
            return current[1:-1, 1:-1]


def shrink(edges: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Returns edges at a smaller size: a cell with any edge pixel is an edge, then lines are thinned.

    The nearest pixel alone would hit a thin line in some cells and miss it in others, which leaves dots.

    Args:
        edges: (H, W), 0, 1, or 255 = ignore.
        size: Height and width of the result, neither above that of ``edges``.

    Returns:
        Of that size. Cells without an edge take their nearest pixel.
    """
    (rows, columns), (height, width) = edges.shape, size
    row = ((np.arange(height) + 0.5) * (rows / height)).astype(np.intp)
    column = ((np.arange(width) + 0.5) * (columns / width)).astype(np.intp)
    found = edges[row][:, column]
    y, x = np.nonzero(edges == 1)
    hit = np.zeros(size, dtype=bool)
    hit[y * height // rows, x * width // columns] = True
    found[found == 1] = 0
    found[thin(hit)] = 1
    return found


def _removable(padded: Mask, first_step: bool) -> Mask:
    """Returns the pixels that may go without breaking a line or shortening its end: (H, W) from (H+2, W+2)."""
    height, width = padded.shape
    # East first, then counter-clockwise: x[0] east, x[2] north, x[4] west, x[6] south.
    offsets = ((1, 2), (0, 2), (0, 1), (0, 0), (1, 0), (2, 0), (2, 1), (2, 2))
    x = [padded[dy : dy + height - 2, dx : dx + width - 2] for dy, dx in offsets]
    crossings = sum((~x[i] & (x[i + 1] | x[(i + 2) % 8])).astype(np.int8) for i in (0, 2, 4, 6))
    ahead = sum((x[i] | x[i + 1]).astype(np.int8) for i in (0, 2, 4, 6))
    behind = sum((x[i + 1] | x[(i + 2) % 8]).astype(np.int8) for i in (0, 2, 4, 6))
    fewest = np.minimum(ahead, behind)
    kept = (x[1] | x[2] | ~x[7]) & x[0] if first_step else (x[5] | x[6] | ~x[3]) & x[4]
    return (crossings == 1) & (fewest >= 2) & (fewest <= 3) & ~kept
