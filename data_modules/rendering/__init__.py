"""Procedural 3-D scenes, ray cast with numpy, with exact labels for every pixel.

`describe` draws a `Scene` from (seed, index); `render` turns scenes into images and labels.
"""

from .layout import describe
from .renderer import Rendered, render
from .scene import JOINTS, MOST_PERSONS, MOST_THINGS, PART_CLASSES, SEMSEG_CLASSES, THING_CLASSES, Scene

__all__ = [
    "JOINTS", "MOST_PERSONS", "MOST_THINGS", "PART_CLASSES", "SEMSEG_CLASSES", "THING_CLASSES", "Rendered", "Scene",
    "describe", "render",
]  # fmt: skip
