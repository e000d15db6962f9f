"""Cityscapes with two tasks, semantics and inverse depth: the official folders, or the reduced sets of MTAN's line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from mtlbench.tasks import IGNORE, SemanticSegmentation, Task
from mtlbench.tasks.taskonomy import InverseDepth

from .dense import DenseData, numbered_files
from .dense import decoding as read
from .dense.decoding import Array, Bytes, Size
from .dense.files import Files
from .dense.recipes import Recipe, ZoomedCrop

NAMES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
FINE_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Official label ids of the 19 classes, in order; all others are ignored."""

CATEGORIES = (range(7, 11), range(11, 17), range(17, 21), range(21, 23), range(23, 24), range(24, 26), range(26, 34))
"""Official label ids of flat, construction, object, nature, sky, human, vehicle."""

Sources = Mapping[str, tuple[str, str]]
LAYOUTS: dict[str, Sources] = {
    "official": {
        "image": ("leftImg8bit", "_leftImg8bit.png"),
        "semseg": ("gtFine", "_gtFine_labelIds.png"),
        "depth": ("disparity", "_disparity.png"),
    },
    "npy": {"image": ("image", ".npy"), "semseg": ("label", ".npy"), "depth": ("depth", ".npy")},
    "png": {"image": ("image", ".png"), "semseg": ("seg", ".png"), "depth": ("depth", ".png")},
}
"""Layout -> kind of file -> (folder, ending).

``official``: <folder>/<split>/<city>/<stem><ending>; the others (MTAN and LibMTL; auto-lambda):
<split>/<folder>/<n><ending>.
"""


class CityscapesFiles(Files):
    """Any of `LAYOUTS`. An id is ``<split>/<city>/<stem>`` or ``<split>/<n>``."""

    TITLE: ClassVar[str] = "Cityscapes"
    FOLDERS: ClassVar[tuple[str, ...]] = ("", "cityscapes", "Cityscapes", "cityscapes2")
    NEEDS: ClassVar[Mapping[str, tuple[str, ...]]] = {"semseg": ("semseg",), "depth": ("depth",)}
    REMEDY: ClassVar[str] = (
        "Unpack leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip and disparity_trainvaltest.zip from "
        "cityscapes-dataset.com (registration, non-commercial) into one folder, or get the reduced set that the "
        "READMEs of MTAN and LibMTL link to, and give the folder as the root. SAMPLE=1 renders a miniature instead."
    )

    def recognise(self, folder: Path) -> bool:
        """Returns whether the training images of some layout lie there."""
        return _layout(folder) is not None

    def sought(self) -> str:
        """Returns the files by which a layout is recognised, for messages."""
        return "leftImg8bit/train, train/image/*.npy or train/image/*.png"

    @cached_property
    def layout(self) -> str:
        """Key of `LAYOUTS`."""
        return _layout(self.base()) or "official"

    def read_ids(self, split: str) -> list[str]:
        """Returns the images of a split: by city and name, or by number."""
        place, ending = LAYOUTS[self.layout]["image"]
        if self.layout == "official":
            cities = sorted(self.names(f"{place}/{split}"))
            return [f"{split}/{c}/{stem}" for c in cities for stem in self.stems(f"{place}/{split}/{c}", ending)]
        stems = self.stems(f"{split}/{place}", ending)
        return [f"{split}/{stem}" for stem in sorted(stems, key=lambda stem: (len(stem), stem))]

    def candidates(self, kind: str, image: str) -> list[str]:
        """Returns the one name that a file has."""
        place, ending = LAYOUTS[self.layout][kind]
        split, _, rest = image.partition("/")
        return [f"{place}/{image}{ending}" if self.layout == "official" else f"{split}/{place}/{rest}{ending}"]

    def places(self, kind: str) -> list[str]:
        """Returns the folder of the training split."""
        place = LAYOUTS[self.layout][kind][0]
        return [f"{place}/train" if self.layout == "official" else f"train/{place}"]


class Cityscapes(DenseData):
    """Cityscapes with 7 classes at 128 x 256, the form of LibMTL: 2975 training and 500 validation images.

    From the official files the classes are the seven categories, and inverse depth is the disparity in pixels,
    (v - 1) / 256; the ``.npy`` sets keep their own scale, and so scores compare within one layout only. ``.npy`` sets
    need labels 0..6.

    Recipes: ``mtan``: no augmentation. ``mtan_augmented``: as for NYUv2; disparity is multiplied by the enlargement,
    as a nearer scene has it (the reference divides it).

    Args:
        **options: Of `DenseData`.
    """

    FILES = CityscapesFiles
    RECIPES: ClassVar[Mapping[str, Recipe]] = {
        "mtan": ZoomedCrop(size=(128, 256), flip=0.0, scale=(1.0,)),
        "mtan_augmented": ZoomedCrop(size=(128, 256)),
    }
    TASKS: ClassVar[Mapping[str, Task]] = {
        "semseg": SemanticSegmentation("semseg", classes=len(CATEGORIES)),
        "depth": InverseDepth("depth"),
    }
    GROUPS: ClassVar[tuple[Collection[int], ...]] = CATEGORIES

    @classmethod
    def miniature(cls, folder: Path) -> Path:
        """Renders a small copy of the set; see `data_modules.miniatures`."""
        from .miniatures import write_cityscapes

        return write_cityscapes(folder)

    def decode(self, image: str, tasks: Collection[str]) -> tuple[Bytes, dict[str, Array]]:
        """Returns the image and the labels of ``tasks``; see `DenseData.decode`."""
        files = cast(CityscapesFiles, self.files)
        npy, path = files.layout == "npy", files.path("image", image)
        pixels = numbered_files.image(path) if npy else read.photo(path)
        size, groups = (pixels.shape[0], pixels.shape[1]), self.GROUPS
        official = files.layout == "official"

        def semseg() -> Bytes:
            path = files.path("semseg", image)
            if official:
                return official_classes(path, groups, size)
            return numbered_files.classes(path, len(groups), size) if npy else png_classes(path, len(groups), size)

        def depth() -> NDArray[np.float32]:
            path = files.path("depth", image)
            return npy_inverse(path, size) if npy else disparity(path, size, official=official)

        readers: dict[str, Callable[[], Array]] = {"semseg": semseg, "depth": depth}
        return pixels, {task: readers[task]() for task in tasks}


class Cityscapes19(Cityscapes):
    """Cityscapes with its 19 classes at 256 x 512, the form of auto-lambda. Else as `Cityscapes`.

    Args:
        **options: Of `DenseData`.
    """

    RECIPES: ClassVar[Mapping[str, Recipe]] = {
        "mtan": ZoomedCrop(size=(256, 512), flip=0.0, scale=(1.0,)),
        "mtan_augmented": ZoomedCrop(size=(256, 512)),
    }
    TASKS: ClassVar[Mapping[str, Task]] = {
        "semseg": SemanticSegmentation("semseg", classes=len(NAMES), class_names=NAMES),
        "depth": InverseDepth("depth"),
    }
    GROUPS: ClassVar[tuple[Collection[int], ...]] = tuple((number,) for number in FINE_IDS)


def official_classes(path: Path, groups: tuple[Collection[int], ...], size: Size) -> Bytes:
    """Returns the group of every official label id, 255 = in none: (H, W)."""
    table = np.full(256, IGNORE, np.uint8)
    for number, ids in enumerate(groups):
        table[list(ids)] = number
    found = read.png(path, read.WHOLE, size)
    fine = (found >= 0) & (found <= 33) | (found == 255)
    read.check_values(path, "label ids are 0..33, or 255 for the car itself", found, fine)
    return table[found.astype(np.uint8)]


def png_classes(path: Path, count: int, size: Size) -> Bytes:
    """Returns class ids as stored, 255 = ignore: (H, W)."""
    found = read.png(path, read.WHOLE, size)
    fine = (found >= 0) & (found < count) | (found == IGNORE)
    read.check_values(path, f"classes are 0..{count - 1}, or 255 for ignore", found, fine)
    return found.astype(np.uint8)


def disparity(path: Path, size: Size, *, official: bool) -> NDArray[np.float32]:
    """Returns disparity in pixels, (v - 1) / 256 if official, else as stored; 0 = invalid: (H, W)."""
    if official:
        stored = read.grey16(path, size).astype(np.float32)
        return np.where(stored > 0, np.maximum(stored - 1, 0.5) / 256, np.float32(0)).astype(np.float32)
    found = read.png(path, ("L", *read.GREY16), size)
    read.check_values(path, "disparity is not negative, with 0 for none", found, found >= 0)
    return found.astype(np.float32)


def npy_inverse(path: Path, size: Size) -> NDArray[np.float32]:
    """Returns inverse depth, 0 = invalid: (H, W)."""
    with np.errstate(over="ignore"):
        found = read.plane(path, read.npy(path), size).astype(np.float32)
    fine = np.isfinite(found) & (found >= 0) & (found != IGNORE)
    read.check_values(path, "inverse depth is finite and not negative, with 0 for none", found, fine)
    return found


def _layout(folder: Path) -> str | None:
    if (folder / "leftImg8bit" / "train").is_dir():
        return "official"
    endings = {read.ending(path) for path in (folder / "train" / "image").glob("[!.]*")}
    return next((name for name in ("npy", "png") if f".{name}" in endings), None)
