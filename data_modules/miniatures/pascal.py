"""A small PASCAL-Context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlbench.tasks import IGNORE

from ..dense.boundaries import boundaries, thin
from ..dense.formats.pascal_labels import PART_NAMES, PARTS, SEMSEG_NAMES
from ..dense.formats.pascal_labels import PERSON as VOC_PERSON
from ..rendering import SEMSEG_CLASSES, render
from ..rendering.renderer import Rendered
from .writing import palette, photo, save, save_mat, whole, write_lists

STAND_INS = {
    "sphere": "sheep", "box": "sofa", "cylinder": "bottle", "cone": "boat", "capsule": "cat", "table": "diningtable",
    "tree": "pottedplant", "person": "person",
}  # fmt: skip
"""Rendered class -> the VOC class whose place it takes; ground and background are VOC's background."""

VOC_IDS = (0, 2, 23, 25, 31, 34, 45, 59, 65, 72, 98, 397, 113, 207, 258, 284, 308, 347, 368, 416, 427)
"""Ids of the VOC classes in PASCAL-Context's ``LabelMap``. Boats, plants and sheep have no valid normals there."""

NOT_VOC = {"background": 440, "ground": 158}
"""Rendered class without a VOC class -> its id in ``LabelMap``: any two whose normals are valid."""

VERSION = 1
"""Raise it when the same arguments give other files."""


def write_pascal(folder: Path, *, train: int = 24, val: int = 12, seed: int = 0, normals: bool = True) -> Path:
    """Renders a small PASCAL-Context with the layout, encodings and gaps of the real one.

    Sizes vary; every fourth image has its segmentation in the fall-back folder; every fifth has persons without
    parts. Normals are (left, up, towards the camera), the axes that the reference code's rotation assumes.

    Args:
        folder: Where ``PASCAL_MT/`` is put; made if absent.
        train: Training images.
        val: Validation images.
        seed: Seed of the scenes.
        normals: Whether to write the normals; without them the optional task is absent.

    Returns:
        ``folder``. A miniature that lies there already is kept if it was made with the same arguments.

    Raises:
        DataError: Something else lies there.
    """
    recipe = {"set": "pascal", "version": VERSION, "train": train, "val": val, "seed": seed, "normals": normals}
    with whole(Path(folder) / "PASCAL_MT", recipe) as target:
        if target is not None:
            ids = [f"2008_{number:06d}" for number in range(train + val)]
            write_lists(target / "ImageSets" / "Context", ids, train)
            for number, name in enumerate(ids):
                _write_image(target, name, number, seed, normals)
    return Path(folder)


def _write_image(target: Path, name: str, number: int, seed: int, normals: bool) -> None:
    height, width = (int(n) for n in np.random.default_rng((seed, number)).integers(72, 111, 2))
    scene = render(seed, [number], height, width)
    voc = {label: SEMSEG_NAMES.index(stand_in) for label, stand_in in STAND_INS.items()}
    semseg = np.array([voc.get(label, 0) for label in SEMSEG_CLASSES])[scene.semseg[0]]
    ids = {label: VOC_IDS[number] for label, number in voc.items()} | NOT_VOC
    context = np.array([ids[label] for label in SEMSEG_CLASSES])[scene.semseg[0]]
    save(photo(scene.image[0]), target / "JPEGImages" / f"{name}.jpg", quality=95, subsampling=0)
    folder = "pascal-context" if number % 4 == 3 else "VOC12"
    if folder == "VOC12":  # VOC leaves borders undecided, maps reduced from PASCAL-Context do not
        semseg = np.where(thin(boundaries(semseg)), IGNORE, semseg)
    save(palette(semseg.astype(np.uint8)), target / "semseg" / folder / f"{name}.png")
    save(scene.saliency[0] * np.uint8(255), target / "sal_distill" / f"{name}.png")
    save_mat(target / "pascal-context" / "trainval" / f"{name}.mat", {"LabelMap": context.astype(np.uint16)})
    anno = _anno(name, scene, annotated=number % 5 != 4)
    save_mat(target / "human_parts" / f"{name}.mat", {"anno": anno})
    if normals:
        left_up = scene.normals[0].transpose(1, 2, 0) * (-1, 1, 1)
        save(((left_up + 1) * 127.5).round().astype(np.uint8), target / "normals_distill" / f"{name}.png")


def _anno(name: str, scene: Rendered, *, annotated: bool) -> dict[str, Any]:
    """Returns PASCAL-Part's struct: every rendered thing is an object; persons carry parts if ``annotated``."""
    objects = []
    for instance in np.unique(scene.instance[0]):
        mask = scene.instance[0] == instance
        label = SEMSEG_CLASSES[int(scene.semseg[0][mask][0])]
        if label in STAND_INS:
            voc = SEMSEG_NAMES.index(STAND_INS[label])
            parts = _parts(scene.parts[0], mask) if voc == VOC_PERSON and annotated else []
            objects.append((STAND_INS[label], voc, mask.astype(np.uint8), _struct(parts, ("part_name", "mask"))))
    return {"imname": name, "objects": _struct(objects, ("class", "class_ind", "mask", "parts"))}


def _parts(labels: NDArray[np.uint8], person: NDArray[np.bool_]) -> list[tuple[str, NDArray[np.uint8]]]:
    """Returns (part name, mask) of one person. A class is divided among its names by column, so that all occur."""
    found = []
    for number, label in enumerate(PART_NAMES):
        mask = person & (labels == number)
        if number and mask.any():
            columns = np.arange(mask.shape[1]) % len(PARTS[label])
            shares = ((name, mask & (columns == share)) for share, name in enumerate(PARTS[label]))
            found += [(name, share.astype(np.uint8)) for name, share in shares if share.any()]
    return found


def _struct(rows: list[tuple], names: tuple[str, ...]) -> NDArray:
    """Returns MATLAB's 1 x N struct array; an empty array for no rows, as the real files have it."""
    if not rows:
        return np.zeros((0, 0))
    return np.array([rows], dtype=[(name, object) for name in names])
