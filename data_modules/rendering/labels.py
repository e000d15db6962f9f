"""Labels that follow from the visible surfaces: edges and saliency."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scene import JOINTS, MOST_PERSONS, MOST_THINGS, PERSON, SEMSEG_CLASSES, THING_CLASSES, Array, Scene

CREASE = float(np.cos(np.radians(30)))
"""Cosine of the angle between two faces of one thing above which their border is an edge."""

JUMP = 0.12
"""Metres of depth between two surfaces of one thing above which their border is an edge."""

KEEP = 0.7
"""Things whose prominence reaches this share of the greatest are salient, too."""

MIN_AREA = 0.004
"""Share of the image below which a thing is never salient, and its box is one to ignore."""


def edges(instance: NDArray[np.int32], surface: NDArray[np.int32], depth: Array, normals: Array) -> NDArray[np.uint8]:
    """Returns thin edges, (H, W), 0 or 1.

    Two neighbours (right or down) are parted by an edge if they show different things, or different faces of one
    thing that meet at a crease (`CREASE`) or with a jump in depth (`JUMP`). Of the two, the nearer pixel is marked:
    borders belong to the thing in front.

    Args:
        instance: (H, W) thing ids.
        surface: (H, W) ids of faces; equal only on one smooth face.
        depth: (H, W) metres, 0 = no surface.
        normals: (3, H, W).
    """
    marked = np.zeros(instance.shape, np.uint8)
    distance = np.where(depth > 0, depth, np.float32(np.inf))
    for first, second in (
        ((..., slice(-1)), (..., slice(1, None))),
        ((..., slice(-1), slice(None)), (..., slice(1, None), slice(None))),
    ):
        crease = (normals[first] * normals[second]).sum(0) < CREASE
        jump = np.abs(depth[first] - depth[second]) > JUMP
        parted = (instance[first] != instance[second]) | ((surface[first] != surface[second]) & (crease | jump))
        nearer = distance[first] <= distance[second]
        marked[first] |= parted & nearer
        marked[second] |= parted & ~nearer
    return marked


def saliency(instance: NDArray[np.int32], things: NDArray[np.bool_], image: Array) -> NDArray[np.uint8]:
    """Returns the mask of the most prominent things, (H, W), 0 or 1; any class may be salient.

    Prominence is (size) x (closeness to the centre) x (contrast): the square root of the visible share of the image,
    held at 0.35; a Gaussian of the distance from the image's centre to the thing's; and 0.1 plus the distance of its
    mean colour from the mean colour of all the rest.

    Args:
        instance: (H, W) thing ids, 0 = none.
        things: (K,) for every id, whether it may be salient: walls, ground and sky may not.
        image: (3, H, W) display RGB in [0, 1], without noise.
    """
    height, width = instance.shape
    label, count = instance.ravel(), len(things)

    def total(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(label, values.ravel(), count).astype(np.float64)

    area = np.maximum(np.bincount(label, minlength=count), 1)
    rows, columns = (np.broadcast_to(line, instance.shape) for line in np.ogrid[:height, :width])
    offset = np.hypot(total(rows) / area - (height - 1) / 2, total(columns) / area - (width - 1) / 2)
    colour = np.stack([total(image[channel]) for channel in range(3)])
    rest = (colour.sum(1, keepdims=True) - colour) / np.maximum(label.size - area, 1)
    contrast = np.sqrt(((colour / area - rest) ** 2).sum(0))
    share = area / label.size
    size = np.minimum(np.sqrt(share), 0.35)
    closeness = np.exp(-0.5 * (offset / (0.3 * min(height, width))) ** 2)
    prominence = size * closeness * (0.1 + contrast) * (things & (share > MIN_AREA))
    salient = (prominence > 0) & (prominence >= KEEP * prominence.max())
    return salient[instance].astype(np.uint8)


def boxes(instance: NDArray[np.int32], scene: Scene) -> Array:
    """Returns the boxes around what is visible of every thing, (`MOST_THINGS`, 6) float32; unused rows are 0.

    A row holds x0, y0, x1, y1 in pixels, 1 or, below `MIN_AREA`, 0, and the class, a position in `THING_CLASSES`.

    Args:
        instance: (H, W) thing ids, 0 = none.
        scene: What is shown.
    """
    first = len(SEMSEG_CLASSES) - len(THING_CLASSES)
    rows = [
        (*_box(instance == number), scene.things[number - 1].label - first)
        for number in np.unique(instance[instance > 0]).tolist()
        if scene.things[number - 1].label >= first
    ]
    return _table(rows, MOST_THINGS, 6)


def joints(instance: NDArray[np.int32], scene: Scene) -> Array:
    """Returns the joints of every visible person, (`MOST_PERSONS`, 5 + 3J) float32; unused rows are 0.

    A row begins as one of `boxes`. x, y and visibility of each of `JOINTS` follow: 2 if the pixel shows the person, 1
    if something hides it or the joint lies just outside the outline, 0 outside the image.

    Args:
        instance: (H, W) thing ids, 0 = none.
        scene: What is shown.
    """
    height, width = instance.shape
    camera, focal, rows = scene.camera, scene.camera.focal(height, width), []
    for number, thing in enumerate(scene.things, 1):
        mask = instance == number
        if thing.label != PERSON or not mask.any():
            continue
        world = np.stack([thing.joints[name] for name in JOINTS]) @ thing.rotation.T + thing.position
        seen = (world - camera.position) @ camera.rotation
        x, y = width / 2 - focal * seen[:, 0] / seen[:, 2], height / 2 + focal * seen[:, 1] / seen[:, 2]
        inside = (seen[:, 2] < 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        column, row = (np.where(inside, v, 0).astype(int) for v in (x, y))
        state = np.where(inside, 1 + mask[row, column], 0)
        rows.append((*_box(mask), *np.where(inside, np.stack([x, y, state]), 0).T.ravel()))
    return _table(rows, MOST_PERSONS, 5 + 3 * len(JOINTS))


def _box(mask: NDArray[np.bool_]) -> tuple[float, ...]:
    """Returns the corners of the box around a mask that is not empty, and whether its area reaches `MIN_AREA`."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    large = mask.mean() >= MIN_AREA
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1), float(large)


def _table(rows: list[tuple[Any, ...]], most: int, columns: int) -> Array:
    table = np.zeros((most, columns), np.float32)
    if rows:
        table[: len(rows)] = rows
    return table
