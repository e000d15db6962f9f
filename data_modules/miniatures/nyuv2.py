"""A small NYUv2 in MTAN's form."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..rendering import SEMSEG_CLASSES, render
from .writing import photo, save_npy, whole

SIZE = (48, 64)


def write_nyuv2(folder: Path, *, train: int = 24, val: int = 12, seed: int = 0) -> Path:
    """Renders a small NYUv2: 48 x 64 pixels, holes in depth and normals, every fifth image without semantics.

    Args:
        folder: Where ``nyuv2/`` is put; made if absent.
        train: Training images.
        val: Validation images.
        seed: Seed of the scenes.

    Returns:
        ``folder``. A miniature that lies there already is kept if it was made with the same arguments.

    Raises:
        DataError: Something else lies there.
    """
    recipe = {"set": "nyuv2", "version": 1, "train": train, "val": val, "seed": seed}
    with whole(Path(folder) / "nyuv2", recipe) as target:
        if target is not None:
            for number in range(train + val):
                place = target / ("train" if number < train else "val")
                _write_image(place, number if number < train else number - train, number, seed)
    return Path(folder)


def _write_image(place: Path, name: int, number: int, seed: int) -> None:
    scene = render(seed, [number], *SIZE)
    background = SEMSEG_CLASSES.index("background")
    semseg = np.where(scene.semseg[0] == background, -1, scene.semseg[0].astype(np.int64))
    if number % 5 == 4:
        semseg[:] = -1
    depth, normals = scene.depth[0].copy(), photo_of_vectors(scene.normals[0])
    depth[:5], normals[:, :4] = 0, 0
    save_npy((photo(scene.image[0]) / np.float32(255)).astype(np.float32), place / "image" / f"{name}.npy")
    save_npy(semseg, place / "label" / f"{name}.npy")
    save_npy(depth[..., None], place / "depth" / f"{name}.npy")
    save_npy(normals, place / "normal" / f"{name}.npy")


def photo_of_vectors(vectors: np.ndarray) -> np.ndarray:
    """Returns (H, W, 3) of (3, H, W)."""
    return np.ascontiguousarray(vectors.transpose(1, 2, 0)).astype(np.float32)
