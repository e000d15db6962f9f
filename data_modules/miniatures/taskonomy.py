"""A small Taskonomy: several buildings, every domain, holes in the scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..rendering import render
from ..rendering.renderer import Rendered
from .writing import photo, save, save_npy, whole

SIZE = (56, 72)
BUILDINGS = {"train": ("hiteman", "beechwood"), "val": ("corozal",), "test": ("ihlen",)}
ELSEWHERE = "allensville"
"""A building that is in the list but not in the copy, as after a partial download."""


def write_taskonomy(folder: Path, *, train: int = 144, val: int = 12, test: int = 12, seed: int = 0) -> Path:
    """Renders a small Taskonomy: 56 x 72 pixels, four buildings of a list of five.

    The list ends its lines with CR alone. One building has no ``mask_valid``; every fourth image has no file for the
    object class, and one picture of the first building lacks a map, so that it does not count.

    Args:
        folder: Where ``taskonomy/`` is put; made if absent.
        train: Training images, over two buildings.
        val: Validation images.
        test: Test images.
        seed: Seed of the scenes.

    Returns:
        ``folder``. A miniature that lies there already is kept if it was made with the same arguments.

    Raises:
        DataError: Something else lies there.
    """
    recipe = {"set": "taskonomy", "version": 1, "train": train, "val": val, "test": test, "seed": seed}
    with whole(Path(folder) / "taskonomy", recipe) as target:
        if target is not None:
            _write_list(target / "splits_taskonomy")
            number = 0
            for split, count in (("train", train), ("val", val), ("test", test)):
                for n in range(count):
                    building = BUILDINGS[split][n % len(BUILDINGS[split])]
                    _write_image(target, building, number, seed)
                    number += 1
            lonely = target / "rgb" / "taskonomy" / BUILDINGS["train"][0] / "point_999_view_0_domain_rgb.png"
            save(np.zeros((*SIZE, 3), np.uint8), lonely)
    return Path(folder)


def _write_list(place: Path) -> None:
    place.mkdir(parents=True)
    rows = [
        f"{name},{int(s == 'train')},{int(s == 'val')},{int(s == 'test')}" for s in BUILDINGS for name in BUILDINGS[s]
    ]
    text = "\r".join(["id,train,val,test", *rows, f"{ELSEWHERE},1,0,0"]) + "\r"
    for subset in ("debug", "tiny", "medium", "full", "fullplus"):
        (place / f"train_val_test_{subset}.csv").write_bytes(text.encode())


def _write_image(target: Path, building: str, number: int, seed: int) -> None:
    scene = render(seed, [number], *SIZE)
    view = f"point_{number}_view_{number % 3}"

    def path(domain: str, ending: str = "png") -> Path:
        return target / domain / "taskonomy" / building / f"{view}_domain_{domain}.{ending}"

    for domain, pixels in _domains(scene).items():
        if domain != "mask_valid" or building != BUILDINGS["train"][1]:
            save(pixels, path(domain))
    generator = np.random.default_rng((seed, number))
    label = int(scene.semseg[0].max())
    logits = generator.normal(size=(1, 1000)).astype(np.float32)
    logits[0, label] += 8
    if number % 4 != 3:
        save_npy(logits, path("class_object", "npy"))
    scores = np.exp(generator.normal(size=365) + 6 * (np.arange(365) == label))
    save_npy((scores / scores.sum()).astype(np.float32), path("class_scene", "npy"))


def _domains(scene: Rendered) -> dict[str, NDArray[Any]]:
    """Returns the picture and every map, as they are stored."""
    depth, hole = scene.depth[0].copy(), scene.depth[0] == 0
    hole[:4] = True
    grey = scene.image[0].mean(0)
    metres = np.where(hole, 65535, np.minimum(depth * 512, 65534)).round().astype(np.uint16)
    right_down = scene.normals[0].transpose(1, 2, 0) * (1, -1, -1)
    codes = np.where(hole[..., None], 128, ((right_down + 1) * 127.5).round()).astype(np.uint8)
    bend = ndimage.gaussian_laplace(np.where(hole, 0, depth), 2).clip(-1, 1)
    shade = (127.5 * (1 + scene.normals[0][2])).astype(np.uint8)
    return {
        "rgb": photo(scene.image[0]),
        "depth_euclidean": metres,
        "depth_zbuffer": metres,
        "normal": codes,
        "principal_curvature": np.stack([127 + 100 * bend, 127 - 100 * bend, 0 * bend], -1).round().astype(np.uint8),
        "edge_occlusion": _stored(np.hypot(*np.gradient(depth)), 400),
        "edge_texture": _stored(ndimage.sobel(grey), 20),
        "keypoints2d": _stored(ndimage.gaussian_laplace(grey, 1), 20),
        "keypoints3d": _stored(bend, 60000),
        "reshading": np.repeat(shade[..., None], 3, -1),
        "segment_unsup2d": (grey // 32 * 8).astype(np.uint8),
        "segment_unsup25d": (scene.instance[0] * 16 % 256).astype(np.uint8),
        "mask_valid": np.where(hole, 0, 255).astype(np.uint8),
    }


def _stored(values: NDArray[Any], factor: float) -> NDArray[np.uint16]:
    return np.minimum(np.abs(values) * factor, 65535).astype(np.uint16)
