"""The files of one PASCAL-Context image, decoded by the rules of the reference loaders.

Label rules follow the public loaders of ASTMT (Maninis et al. 2019), Multi-Task-Learning-PyTorch (Vandenhende et al.
2021), ATRC and InvPT. Every function returns an array of the photograph's own size and raises `DataError` with the
file's name, the rule, what was found, and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtlbench.tasks import IGNORE
from mtlbench.tasks.dense import NO_NORMAL

from ..boundaries import boundaries, thin
from ..decoding import WHOLE, Bytes, Size, check_unit, check_values, fault, mat, matrix, numbers, plane, png, reading

SEMSEG_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
PERSON = SEMSEG_NAMES.index("person")

_BITS = np.arange(8)
VOC_COLOURS = (
    ((np.arange(256)[:, None, None] >> (3 * _BITS + np.arange(3)[:, None]) & 1) << (7 - _BITS)).sum(-1).astype(np.uint8)
)
"""VOC's palette, (256, 3): the bits of an id, dealt to red, green and blue."""

PARTS = {
    "background": (),
    "head": ("hair", "head", "lear", "rear", "lebrow", "rebrow", "leye", "reye", "mouth", "nose"),
    "torso": ("neck", "torso"),
    "upper arms": ("luarm", "ruarm"),
    "lower arms": ("llarm", "rlarm", "lhand", "rhand"),
    "upper legs": ("luleg", "ruleg"),
    "lower legs": ("llleg", "rlleg", "lfoot", "rfoot"),
}
"""The 7 classes of the standard recipe, in order -> PASCAL-Part's names."""
PART_NAMES = tuple(PARTS)
PART_IDS = {part: number for number, names in enumerate(PARTS.values()) for part in names}

CONTEXT_CLASSES = 459
"""Highest id of a ``LabelMap``; 0 is possible as well."""

NORMALS_IDS = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56, 59,
    61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124, 135,
    141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215,
    216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272,
    273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 329,
    330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405,
    407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457,
)  # fmt: skip
"""Context classes whose normals count: those that indoor NYU data knows, for the normals come from a network trained
there."""


def semseg(path: Path, size: Size) -> Bytes:
    """Returns VOC classes 0..20, 255 = ignore: (H, W). Palette indices, never colours."""
    found = png(path, WHOLE, size)
    fine = (found >= 0) & (found < len(SEMSEG_NAMES)) | (found == IGNORE)
    check_values(path, "VOC classes are 0..20, or 255 for ignore", found, fine)
    return found.astype(np.uint8)


def foreign_palette(path: Path) -> bool:
    """Returns whether a palette picture has other colours than VOC's for the classes that it holds.

    Raises:
        DataError: The picture is damaged.
    """

    def read() -> tuple[Bytes | None, Bytes]:
        with Image.open(path) as picture:
            if picture.mode != "P":
                return None, np.empty(0, np.uint8)
            return np.array(picture), np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)

    classes, colours = reading(path, read)
    if classes is None:
        return False
    used = np.unique(classes)
    used = used[used < min(len(SEMSEG_NAMES), len(colours))]
    return bool((colours[used] != VOC_COLOURS[used]).any())


def saliency(path: Path, size: Size) -> Bytes:
    """Returns 1 where the stored foreground probability v / 255 is above 0.5, else 0: (H, W)."""
    found = png(path, ("L", "1"), size)
    return (found > (0 if found.dtype == np.bool_ else 127)).astype(np.uint8)


def normals(path: Path, context: NDArray[np.integer]) -> Bytes:
    """Returns 8-bit normals n = 2v/255 - 1, `NO_NORMAL` where the context class is not in `NORMALS_IDS`: (H, W, 3)."""
    found = png(path, ("RGB",), (context.shape[0], context.shape[1]))
    check_unit(path, found * np.float32(2 / 255) - 1)
    return np.where(np.isin(context, NORMALS_IDS)[..., None], found, np.uint8(NO_NORMAL))


def context(path: Path, size: Size) -> NDArray[np.integer]:
    """Returns the 459-class map, 0..459: (H, W)."""
    found = plane(path, matrix(path, "LabelMap"), size)
    fine = (found >= 0) & (found <= CONTEXT_CLASSES) & (found == np.floor(found))
    check_values(path, "context classes are whole numbers 0..459", found, fine)
    return found.astype(np.int32)


def edges(context: NDArray[np.integer]) -> Bytes:
    """Returns 1 on the thinned borders of the context map, else 0: (H, W)."""
    return thin(boundaries(context)).astype(np.uint8)


def parts(path: Path, size: Size) -> Bytes:
    """Returns part classes 0..6: (H, W). All 0 when no person carries parts, which means the label is missing.

    Only persons count; later objects and parts overwrite earlier ones.
    """
    found = np.zeros(size, dtype=np.uint8)
    for name, mask in reading(path, lambda: list(_annotated(mat(path, "anno")))):
        if name not in PART_IDS:
            raise fault(path, f"a person's parts have one of {len(PART_IDS)} names", f"part {name!r}")
        found[plane(path, numbers(path, mask), size) > 0] = PART_IDS[name]
    return found


def _annotated(anno: Any) -> Iterator[tuple[str, NDArray]]:
    """Yields (part name, mask) of every person; ``anno`` is (imname, objects [class, class_ind, mask, parts])."""
    objects = _member(np.ravel(anno)[0], "objects", 1)
    for thing in np.ravel(objects):
        if int(np.ravel(_member(thing, "class_ind", 1))[0]) == PERSON:
            for part in np.ravel(_member(thing, "parts", 3)):  # an empty array where nobody drew any
                yield str(np.ravel(_member(part, "part_name", 0))[0]), np.asarray(_member(part, "mask", 1))


def _member(record: Any, name: str, position: int) -> Any:
    """Returns a field by its name where MATLAB's struct has names, else by position."""
    names = record.dtype.names
    if names is None:
        return np.ravel(record)[position]
    return record[name if name in names else names[position]]
