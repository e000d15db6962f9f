"""Renders scenes: an image and every label of what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import labels, shading, tracing
from .layout import describe
from .scene import BACKGROUND, GROUND, Array, Scene
from .solids import FACES


@dataclass(frozen=True)
class Rendered:
    """Images and labels of N scenes, pixel for pixel.

    Attributes:
        image: uint8 (N, 3, H, W), sRGB.
        semseg: uint8 (N, H, W), ids of `SEMSEG_CLASSES`.
        parts: uint8 (N, H, W), ids of `PART_CLASSES`; 0 outside persons.
        saliency: uint8 (N, H, W), 1 on the most prominent things, see `labels.saliency`.
        depth: float32 (N, H, W), metres along the optical axis, 0 = no surface.
        normals: float32 (N, 3, H, W), unit vectors (right, up, towards the camera), 0 = no surface.
        edges: uint8 (N, H, W), 1 on edges, see `labels.edges`.
        detection: float32 (N, M, 6), the boxes of things, see `labels.boxes`.
        keypoints: float32 (N, M, 5 + 3J), the joints of persons, see `labels.joints`.
        instance: int32 (N, H, W), 1 + position in ``Scene.things``, 0 = no surface.
    """

    image: NDArray[np.uint8]
    semseg: NDArray[np.uint8]
    parts: NDArray[np.uint8]
    saliency: NDArray[np.uint8]
    depth: Array
    normals: Array
    edges: NDArray[np.uint8]
    detection: Array
    keypoints: Array
    instance: NDArray[np.int32]


def render(seed: int, indices: Sequence[int], height: int, width: int, typical: float = 0.0) -> Rendered:
    """Returns the scenes of (seed, index) for every index; an image does not depend on the others.

    Args:
        seed: Seed of the data set, >= 0.
        indices: Which scenes, each >= 0; not empty.
        height: Rows, >= 8.
        width: Columns, >= 8.
        typical: Share of things in the typical colours of their class, 0 to 1.

    Raises:
        ValueError: If an argument is out of range.
    """
    if not len(indices) or min(height, width) < 8:
        raise ValueError(f"Give at least one index and 8 x 8 pixels: {len(indices)} indices, {height} x {width}.")
    shots = [shoot(describe(seed, i, typical), height, width, np.random.default_rng((seed, i, 1))) for i in indices]
    return Rendered(**{f.name: np.stack([getattr(shot, f.name) for shot in shots]) for f in fields(Rendered)})


def shoot(scene: Scene, height: int, width: int, generator: np.random.Generator) -> Rendered:
    """Returns one scene's image and labels, without the leading dimension; ``generator`` gives the sensor noise."""
    table = tracing.tabulate(scene)
    rays = tracing.rays(scene.camera, height, width)
    hits = tracing.visible(table, rays)
    linear = shading.sky(scene, rays)
    linear[:, hits.pixel] = shading.shade(scene, table, hits, linear[:, hits.pixel])
    exposed = shading.expose(linear, scene.camera.exposure).reshape(3, height, width)

    def scatter(values: NDArray[Any], dtype: type) -> NDArray[Any]:
        full = np.zeros((*values.shape[:-1], height * width), dtype)
        full[..., hits.pixel] = values
        return full.reshape(*values.shape[:-1], height, width)

    instance = scatter(table.thing[hits.solid] + 1, np.int32)
    depth, normals = scatter(hits.depth, np.float32), scatter(hits.normal, np.float32)
    surface = scatter(hits.solid * FACES + hits.face + 1, np.int32)
    things = np.array([False, *(thing.label not in (BACKGROUND, GROUND) for thing in scene.things)])
    return Rendered(
        image=shading.sense(exposed, scene.camera.noise, generator),
        semseg=scatter(table.label[hits.solid], np.uint8),
        parts=scatter(table.part[hits.solid], np.uint8),
        saliency=labels.saliency(instance, things, exposed),
        depth=depth,
        normals=normals,
        edges=labels.edges(instance, surface, depth, normals),
        detection=labels.boxes(instance, scene),
        keypoints=labels.joints(instance, scene),
        instance=instance,
    )
