"""A small Cityscapes, in its official folders or reduced."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..rendering import SEMSEG_CLASSES, render
from .writing import photo, save, save_npy, whole

SIZE = (32, 64)
CITIES = ("aachen", "bochum")
STAND_INS = {
    "background": 23, "ground": 7, "sphere": 26, "box": 11, "cylinder": 17, "cone": 20, "capsule": 28, "table": 33,
    "tree": 21, "person": 24,
}  # fmt: skip
"""Rendered class -> official label id."""

BASELINE = 20.0
"""Disparity in pixels of a thing at one metre."""


def write_cityscapes(
    folder: Path, *, train: int = 24, val: int = 12, seed: int = 0, layout: str = "official", classes: int = 7
) -> Path:
    """Renders a small Cityscapes: 32 x 64 pixels, two cities, sky without depth, one image without any label.

    Args:
        folder: Where ``cityscapes/`` is put; made if absent.
        train: Training images.
        val: Validation images.
        seed: Seed of the scenes.
        layout: ``official``, ``npy`` (MTAN and LibMTL) or ``png`` (auto-lambda).
        classes: Of the reduced sets: 7 or 19.

    Returns:
        ``folder``. A miniature that lies there already is kept if it was made with the same arguments.

    Raises:
        DataError: Something else lies there.
    """
    recipe = {"set": "cityscapes", "version": 1, "train": train, "val": val, "seed": seed, "layout": layout,
              "classes": classes}  # fmt: skip
    with whole(Path(folder) / "cityscapes", recipe) as target:
        if target is not None:
            for number in range(train + val):
                split, n = ("train", number) if number < train else ("val", number - train)
                _write_image(target, split, n, number, recipe)
    return Path(folder)


def _write_image(target: Path, split: str, n: int, number: int, recipe: dict) -> None:
    scene = render(recipe["seed"], [number], *SIZE)
    ids = np.array([STAND_INS[label] for label in SEMSEG_CLASSES], np.uint8)[scene.semseg[0]]
    ids[-4:] = 1  # the car itself
    disparity = np.where(scene.depth[0] > 0, BASELINE / np.maximum(scene.depth[0], 0.1), 0).astype(np.float32)
    if number == 3:
        ids[:], disparity[:] = 0, 0
    if recipe["layout"] == "official":
        city = CITIES[number % 2]
        stem = f"{city}_{number:06d}_000019"
        stored = np.where(disparity > 0, disparity * 256 + 1, 0).round().astype(np.uint16)
        save(photo(scene.image[0]), target / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
        save(ids, target / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png")
        save(stored, target / "disparity" / split / city / f"{stem}_disparity.png")
        return
    place, classes = target / split, ids % recipe["classes"]  # any classes will do
    if recipe["layout"] == "npy":
        save_npy((photo(scene.image[0]) / np.float32(255)).astype(np.float32), place / "image" / f"{n}.npy")
        save_npy(np.where(ids < 2, -1, classes.astype(np.float32)), place / "label" / f"{n}.npy")
        save_npy(disparity[..., None] / 100, place / "depth" / f"{n}.npy")
    else:
        save(photo(scene.image[0]), place / "image" / f"{n}.png")
        save(np.where(ids < 2, 255, classes).astype(np.uint8), place / "seg" / f"{n}.png")
        save((disparity * 256).astype(np.uint16), place / "depth" / f"{n}.png")
