"""From surfaces to pixels: sky, light, haze, exposure and sensor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .materials import albedo
from .scene import FAR, Array, Scene
from .tracing import Hits, Table, shadowed, unit


def sky(scene: Scene, directions: Array) -> Array:
    """Returns the colour of the sky along rays, (3, M): haze at the horizon, changing upwards."""
    rise = scene.camera.rotation[1] @ unit(directions)
    horizon, zenith = scene.light.horizon[:, None], scene.light.zenith[:, None]
    return horizon + np.clip(rise * 2, 0, 1) * (zenith - horizon)


def shade(scene: Scene, table: Table, hits: Hits, haze: Array) -> Array:
    """Returns the linear colour of the points hit, (3, Q): Lambert, hard shadows, a highlight, haze.

    Args:
        scene: Light and camera.
        table: Solids.
        hits: Points.
        haze: (3, Q) colour of the sky behind them.
    """
    view, light = scene.camera.rotation.T, scene.light
    lamp = view @ light.direction
    facing = np.maximum(lamp @ hits.normal, 0)
    lit = facing * ~shadowed(table, hits, lamp, facing > 0)
    half = unit(lamp[:, None] - unit(hits.point))
    gloss = np.array([material.gloss for material in table.materials], np.float32)[hits.solid]
    highlight = 0.5 * gloss * np.maximum((half * hits.normal).sum(0), 0) ** 40 * (lit > 0)
    ambient = light.ambient[:, None] * (0.65 + 0.35 * (view[:, 1] @ hits.normal))
    base = albedo(table.materials, hits.solid, hits.local * table.scale.T.take(hits.solid, 1))
    colour = base * (ambient + light.colour[:, None] * lit) + light.colour[:, None] * highlight
    lost = 0.85 * (hits.depth / np.float32(FAR)) ** 3
    return colour + lost * (haze - colour)


def expose(linear: Array, mean: float) -> Array:
    """Returns display values in [0, 1): gain to the given mean, soft shoulder, gamma."""
    gained = linear * np.float32(mean / max(float(linear.mean()), 1e-6))
    return (1 - np.exp(-1.25 * gained)) ** np.float32(1 / 2.2)


def sense(exposed: Array, noise: float, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Returns the image with Gaussian noise of the given standard deviation, uint8."""
    noisy = exposed + np.float32(noise) * generator.standard_normal(exposed.shape, np.float32)
    return (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8)
