"""Matches edge pixels one to one within a distance, for all thresholds in one pass. Does not import torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

BLOCK = 4096
"""Number of pixels whose neighbours are searched together; bounds memory."""


def matched_in_order(pixels: Ints, truths: NDArray[np.bool_], reach: float) -> Mask:
    """Returns which pixels enlarge a maximum matching when they are added in the given order: bool (N,).

    The number of True among the first n is the size of a maximum matching of the first n pixels, for every n: sets of
    pixels that can be matched at once form a matroid, so a pixel once matched stays matched, and one that cannot be
    added never will be (Edmonds and Fulkerson, 1965). Pixels may pair with a truth at most ``reach`` away, Euclidean.
    Each is added along an augmenting path (Kuhn, 1955); truths reached in vain cannot be freed later and are
    left out from then on.

    Args:
        pixels: (N, 2) row and column, each pixel once.
        truths: (A, H, W) edges to be matched; those of several layers are different edges.
        reach: Largest distance in pixels.
    """
    start, near, count = _neighbours(pixels, truths, reach)
    owner = [-1] * count  # pixel that a truth is matched with
    seen = [-1] * count  # last pixel whose search came here; len(pixels) = never again
    came = [-1] * count  # pixel from which that search came here
    partner = [-1] * len(pixels)
    found = np.zeros(len(pixels), bool)
    for pixel in np.flatnonzero(np.diff(start)).tolist():
        reached: list[int] = []
        free = _search(pixel, start, near, owner, seen, came, reached)
        if free < 0:
            for truth in reached:
                seen[truth] = len(pixels)
            continue
        found[pixel] = True
        while free >= 0:
            giver = came[free]
            owner[free] = giver
            partner[giver], free = free, partner[giver]
    return found


def _search(
    pixel: int,
    start: list[int],
    near: list[int],
    owner: list[int],
    seen: list[int],
    came: list[int],
    reached: list[int],
) -> int:
    """Returns the free truth at the end of an augmenting path, -1 if there is none."""
    stack = [pixel]
    while stack:
        giver = stack.pop()
        for truth in near[start[giver] : start[giver + 1]]:
            if seen[truth] < pixel:
                seen[truth], came[truth] = pixel, giver
                if owner[truth] < 0:
                    return truth
                reached.append(truth)
                stack.append(owner[truth])
    return -1


def _neighbours(pixels: Ints, truths: NDArray[np.bool_], reach: float) -> tuple[list[int], list[int], int]:
    """Returns the truths near each pixel, nearest first, as a list cut at ``start``, and the number of truths."""
    radius = int(reach)
    dy, dx = np.mgrid[-radius : radius + 1, -radius : radius + 1].reshape(2, -1)
    square = dy * dy + dx * dx
    nearest = np.argsort(square, kind="stable")[: np.count_nonzero(square <= reach * reach)]
    number = np.full((len(truths), truths.shape[1] + 2 * radius, truths.shape[2] + 2 * radius), -1, np.int32)
    inner = number[:, radius : radius + truths.shape[1], radius : radius + truths.shape[2]]
    inner[truths] = np.arange(np.count_nonzero(truths))
    width = number.shape[2]
    steps = dy[nearest] * width + dx[nearest]
    places = (pixels[:, 0] + radius) * width + pixels[:, 1] + radius
    lengths, near = [np.zeros(1, np.int64)], []
    for part in np.split(places, range(BLOCK, len(places), BLOCK)):
        close = number.reshape(len(truths), -1)[:, part[:, None] + steps]
        close = close.transpose(1, 2, 0).reshape(len(part), len(truths) * len(steps))
        real = close >= 0
        lengths.append(real.sum(1))
        near += close[real].tolist()
    return np.concatenate(lengths).cumsum().tolist(), near, int(np.count_nonzero(truths))
