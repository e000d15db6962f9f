"""Brings a photograph of any size and its labels to the size at which samples are stored, without chance."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from mtlbench.tasks import Edges, Task

from .boundaries import shrink
from .cache import Decoded
from .decoding import Array, Bytes
from .recipes import Recipe


class Fit:
    """How a photograph of any size becomes a picture of the stored size, labels by the nearest pixel."""

    @staticmethod
    def stretch(photo: Bytes, labels: Mapping[str, Array], recipe: Recipe, tasks: Mapping[str, Task]) -> Decoded:
        """Returns image and labels at the stored size, the ratio of the sides not kept."""
        size, (height, width) = recipe.stored, photo.shape[:2]
        found = {
            name: tasks[name].store(_fitted(label, size, recipe, tasks[name]) if label.ndim > 1 else label)
            for name, label in labels.items()
        }
        image = _channels_first(_resized(photo, size, recipe.image_how))
        return Decoded(image, found, (0, 0, *size), height / width)

    @staticmethod
    def pad(photo: Bytes, labels: Mapping[str, Array], recipe: Recipe, tasks: Mapping[str, Task]) -> Decoded:
        """Returns image and labels in the middle of the stored size; larger photographs are first shrunk to fit."""
        (height, width), original = recipe.stored, photo.shape[:2]
        factor = min(1.0, height / original[0], width / original[1])
        inner = (max(1, round(original[0] * factor)), max(1, round(original[1] * factor)))
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        place = (..., slice(top, top + inner[0]), slice(left, left + inner[1]))

        def padded(inside: Array, fill: float) -> Array:
            whole = np.full((*inside.shape[:-2], height, width), fill, inside.dtype)
            whole[place] = inside
            return whole

        image = np.empty((3, height, width), np.uint8)
        image[:] = np.array(recipe.outside, np.uint8)[:, None, None]
        image[place] = _channels_first(_resized(photo, inner, recipe.image_how))
        found = {}
        for name, label in labels.items():
            small = tasks[name].store(_fitted(label, inner, recipe, tasks[name]) if label.ndim > 1 else label)
            found[name] = padded(small, tasks[name].outside(small)) if label.ndim > 1 else small
        return Decoded(image, found, (top, left, *inner), original[0] / original[1])


def _resized(photo: Bytes, size: tuple[int, int], how: Image.Resampling) -> Bytes:
    if photo.shape[:2] == tuple(size):
        return photo
    return np.array(Image.fromarray(photo).resize((size[1], size[0]), how))


def _fitted(label: Array, size: tuple[int, int], recipe: Recipe, task: Task) -> Array:
    """Returns a label (H, W) or (H, W, C) at another size by the recipe's rule, channels first."""
    smaller = label.shape[:2] != tuple(size) and label.shape[0] >= size[0] and label.shape[1] >= size[1]
    if recipe.whole_edges and isinstance(task, Edges) and smaller:
        return shrink(label, size)
    return _nearest(label, size)


def _nearest(label: Array, size: tuple[int, int]) -> Array:
    """Returns a label (H, W) or (H, W, C) at another size, channels first."""
    (rows, columns), (height, width) = label.shape[:2], size
    if (rows, columns) != (height, width):
        row = ((np.arange(height) + 0.5) * (rows / height)).astype(np.intp)
        column = ((np.arange(width) + 0.5) * (columns / width)).astype(np.intp)
        label = label[row][:, column]
    return _channels_first(label) if label.ndim == 3 else np.ascontiguousarray(label)


def _channels_first(pixels: Array) -> Array:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
