"""A small NYUD-v2 in any of its three encodings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..nyud import SEMSEG_NAMES
from ..rendering import SEMSEG_CLASSES, render
from .writing import photo, save, save_mat, save_npy, whole, write_lists

SIZE = (60, 80)
STAND_INS = {
    "ground": "floor", "sphere": "pillow", "box": "cabinet", "cylinder": "lamp", "cone": "toilet", "capsule": "bathtub",
    "table": "table", "tree": "curtain", "person": "person",
}  # fmt: skip
"""Rendered class -> NYU's; the background is unlabelled."""

FOLDERS = {"vandenhende": "NYUD_MT", "astmt": "NYUD_MT", "invpt": "NYUDv2"}


def write_nyud(folder: Path, *, train: int = 24, val: int = 12, seed: int = 0, layout: str = "vandenhende") -> Path:
    """Renders a small NYUD-v2: 60 x 80 pixels, holes in depth and normals, every fifth image without semantics.

    Normals are (left, up, towards the camera), the axes that the reference code's rotation assumes.

    Args:
        folder: Where the data set is put; made if absent.
        train: Training images.
        val: Validation images.
        seed: Seed of the scenes.
        layout: Whose archive: ``vandenhende``, ``astmt`` or ``invpt``.

    Returns:
        ``folder``. A miniature that lies there already is kept if it was made with the same arguments.

    Raises:
        DataError: Something else lies there.
    """
    recipe = {"set": "nyud", "version": 1, "train": train, "val": val, "seed": seed, "layout": layout}
    with whole(Path(folder) / FOLDERS[layout], recipe) as target:
        if target is not None:
            ids = [f"{number:04d}" for number in range(1, 1 + train + val)]
            write_lists(target / "gt_sets", ids, train)
            for number, name in enumerate(ids):
                _write_image(target, name, number, seed, layout)
    return Path(folder)


def _write_image(target: Path, name: str, number: int, seed: int, layout: str) -> None:
    scene = render(seed, [number], *SIZE)
    table = [1 + SEMSEG_NAMES.index(STAND_INS[label]) if label in STAND_INS else 0 for label in SEMSEG_CLASSES]
    semseg = np.array(table, np.uint8)[scene.semseg[0]] * (number % 5 != 4)
    depth, left_up = scene.depth[0].copy(), scene.normals[0].transpose(1, 2, 0) * (-1, 1, 1)
    depth[:6], left_up[:, :5] = 0, 0  # the sensor's blind margin
    if layout == "invpt":
        save(photo(scene.image[0]), target / "images" / f"{name}.png")
    else:
        save(photo(scene.image[0]), target / "images" / f"{name}.jpg", quality=95, subsampling=0)
    codes = ((left_up + 1) * 127.5).round().astype(np.uint8)
    if layout == "astmt":
        save_mat(target / "segmentation" / f"{name}.mat", {"segmentation": semseg})
        save_mat(target / "depth" / f"{name}.mat", {"depth": depth})
        save(codes, target / "normals" / f"{name}.jpg", quality=95, subsampling=0)
    else:
        save(semseg, target / "segmentation" / f"{name}.png")
        save_npy(depth, target / "depth" / f"{name}.npy")
    if layout == "vandenhende":
        save_npy(left_up.astype(np.float32), target / "normals" / f"{name}.npy")
        save_npy(scene.edges[0].astype(np.float32), target / "edge" / f"{name}.npy")
    else:
        save(scene.edges[0] * np.uint8(255), target / "edge" / f"{name}.png")
    if layout == "invpt":
        save(codes, target / "normals" / f"{name}.png")
