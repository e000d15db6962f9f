"""Typical colours of classes: with them, colour is evidence of the class, as it is in photographs."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np

from .scene import PART_CLASSES, SEMSEG_CLASSES, Array, Material, Scene, Solid

_THINGS = {
    "background": (0.58, 0.12),
    "ground": (0.1, 0.25),
    "sphere": (0.75, 0.65),
    "box": (0.52, 0.65),
    "cylinder": (0.14, 0.8),
    "cone": (0.88, 0.6),
    "capsule": (0.43, 0.7),
    "table": (0.07, 0.75),
    "tree": (0.3, 0.65),
}
"""Hue and saturation of a class, both in [0, 1]."""

_SKIN, _SHIRT, _TROUSERS = (0.06, 0.4), (0.99, 0.7), (0.63, 0.65)
_PARTS = {
    "head": _SKIN,
    "torso": _SHIRT,
    "upper arms": _SHIRT,
    "lower arms": _SKIN,
    "upper legs": _TROUSERS,
    "lower legs": _TROUSERS,
}
"""The same of a body part: what it wears."""


def recolour(scene: Scene, share: float, generator: np.random.Generator) -> Scene:
    """Returns the scene with a share of its things in the typical colours of their class; nothing else changes.

    Brightness, pattern and gloss of a surface stay as they are, so a typical thing still has random tones.

    Args:
        scene: Any scene.
        share: Share of recoloured things, 0 to 1.
        generator: Chooses the things and their shades.
    """
    things = []
    for thing in scene.things:
        chosen, shade = generator.random() < share, generator.uniform(-1, 1, 2)
        if chosen:
            thing = replace(thing, solids=tuple(_repaint(solid, thing.label, shade) for solid in thing.solids))
        things.append(thing)
    return replace(scene, things=tuple(things))


def _repaint(solid: Solid, label: int, shade: Array) -> Solid:
    hue, saturation = _PARTS[PART_CLASSES[solid.part]] if solid.part else _THINGS[SEMSEG_CLASSES[label]]
    return replace(solid, material=_tinted(solid.material, hue + 0.03 * shade[0], saturation * (1 + 0.25 * shade[1])))


def _tinted(material: Material, hue: float, saturation: float) -> Material:
    # The brightest channel of a colour is its value, which stays.
    colours = [colorsys.hsv_to_rgb(hue % 1, saturation, float(max(colour))) for colour in material.colours]
    return replace(material, colours=np.array(colours, np.float32))
