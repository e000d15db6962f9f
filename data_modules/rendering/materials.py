"""Materials: random ones, whose colours and patterns say nothing about the class, and their colour at a point."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .scene import Array, Material, Texture, vector

_TEXTURES = np.cumsum((0.34, 0.22, 0.2))  # Upper ends of the shares of all but the last texture.
_SKIN = np.array(((0.85, 0.62, 0.48), (0.09, 0.045, 0.03)), np.float32)


def tint(generator: np.random.Generator, strength: float) -> Array:
    """Returns a random colour near white, (3,): channels in [1 - strength, 1]."""
    return (1 - strength * generator.random(3)).astype(np.float32)


def material(generator: np.random.Generator) -> Material:
    """Returns a random material. A quarter of them have the colour of skin, which therefore proves no person."""
    draw = generator.random(17)
    texture = Texture(int(np.searchsorted(_TEXTURES, draw[0])))
    if draw[1] < 0.25:
        colours = _skin_tones(draw[2:4])
    else:
        # Squared: linear light, so that dark, middle and bright tones look equally frequent.
        value, saturation = (0.15 + 0.85 * draw[2:4, None]) ** 2, np.sqrt(draw[4:6, None])
        colours = (value * (1 - saturation * draw[6:12].reshape(2, 3))).astype(np.float32)
    angle, height, cycles = math.tau * draw[12], 2 * draw[13] - 1, 8 + 32 * draw[14]
    across = math.sqrt(1 - height**2)
    wave = vector(cycles * across * math.cos(angle), cycles * height, cycles * across * math.sin(angle))
    return Material(texture, colours, wave, math.tau * float(draw[15]), max(0.0, 1.2 * float(draw[16]) - 0.5))


def skin(generator: np.random.Generator) -> Material:
    """Returns skin on most figures, and any material on the others."""
    if generator.random() < 0.35:
        return material(generator)
    tone = np.repeat(generator.random(1), 2)
    return Material(Texture.PLAIN, _skin_tones(tone), np.ones(3, np.float32), 0.0, 0.1)


def _skin_tones(share: NDArray[np.float64]) -> Array:
    """Returns (2, 3) colours between light and dark skin."""
    return (_SKIN[0] + share[:, None] * (_SKIN[1] - _SKIN[0])).astype(np.float32)


def albedo(materials: Sequence[Material], index: NDArray[np.intp], point: Array) -> Array:
    """Returns the colour of surfaces at points.

    Args:
        materials: Materials to choose from.
        index: (Q,) which of them.
        point: (3, Q) metres, in the frame of the solid.

    Returns:
        (3, Q) linear RGB.
    """
    texture = np.array([material.texture for material in materials])[index]
    phase = np.array([material.phase for material in materials], np.float32)[index]
    wave = np.stack([material.wave for material in materials], 1).take(index, 1)
    first, second = (np.stack([m.colours[side] for m in materials], 1).take(index, 1) for side in (0, 1))
    along, across = (wave * point).sum(0) + phase, (np.roll(wave, 1, 0) * point).sum(0)
    cells = np.sin(0.5 * np.sqrt((wave * wave).sum(0)) * point + phase)
    blotches = np.sin(0.5 * along + 2 * np.sin(0.7 * across)) + 0.3 * np.sin(3 * across)
    pattern = np.select(
        (texture == Texture.STRIPES, texture == Texture.CHECKER, texture == Texture.BLOTCHES),
        (np.sin(along), 40 * cells[0] * cells[1] * cells[2], blotches),
        np.float32(-1),
    )
    return first + np.clip(0.5 + 1.5 * pattern, 0, 1) * (second - first)
