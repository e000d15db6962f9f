"""NYUD-v2 with four dense tasks, in the three encodings that its archives have."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mtlbench.data.download import Download
from mtlbench.tasks import IGNORE, Depth, Edges, Normals, SemanticSegmentation, Task

from .dense import DenseData
from .dense import decoding as read
from .dense.decoding import Array, Bytes, Size
from .dense.files import ListedFiles
from .dense.formats.nyu_labeled import write_nyud_mt
from .dense.recipes import AboutCentre, Recipe, ScaledCrop

SEMSEG_NAMES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refridgerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip


class NyudFiles(ListedFiles):
    """``NYUD_MT`` of ASTMT, ``NYUD_MT`` of Vandenhende and ATRC, or ``NYUDv2`` of InvPT.

    The archives share names and folders but not encodings, so each file is taken in the encoding it has.
    """

    TITLE: ClassVar[str] = "NYUD-v2"
    FOLDERS: ClassVar[tuple[str, ...]] = ("", "NYUD_MT", "NYUDv2")
    LISTS: ClassVar[str] = "gt_sets"
    SOURCES: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {
        "image": (("images", ".jpg"), ("images", ".png")),
        "semseg": (("segmentation", ".png"), ("segmentation", ".mat")),
        "depth": (("depth", ".npy"), ("depth", ".mat")),
        "normals": (("normals", ".npy"), ("normals", ".png"), ("normals", ".jpg")),
        "edges": (("edge", ".npy"), ("edge", ".png")),
    }
    NEEDS: ClassVar[Mapping[str, tuple[str, ...]]] = {name: (name,) for name in ("semseg", "depth", "normals", "edges")}
    REMEDY: ClassVar[str] = (
        "Unpack NYUD_MT.tgz (Google Drive id 14EAEMXmd3zs2hIMY63UhHPSFPDAkiTzw, by browser; or the older archive of "
        "that name at data.vision.ee.ethz.ch/kmaninis/share/MTL/NYUD_MT.tgz) or NYUDv2.tar.gz (OneDrive folder linked "
        "in the InvPT README) and give the folder that holds it as the root; or `mtlbench data nyud --convert "
        "nyu_depth_v2_labeled.mat`, which makes photographs, depth and segmentation of the authors' file. The terms "
        "are those of NYU Depth V2. SAMPLE=1 renders a miniature instead."
    )


class Nyud(DenseData):
    """NYUD-v2: 795 training and 654 test images of rooms.

    Recipes: ``vandenhende``: stretched to 480 x 640, scale 1, 1.2 or 1.5, flip. ``astmt``: stretched to 512 x 512,
    scale 0.75..1.25, turn -20..20 degrees, flip, depth not divided by the scale. ``invpt`` (448 x 576) and ``atrc``
    (425 x 560): padded; scale 0.5..2, crop, flip, colours. Classes are the 40 of all recipes but ASTMT's, which keeps
    "unlabelled" as one more.

    Args:
        **options: Of `DenseData`.
    """

    FILES = NyudFiles
    RECIPES: ClassVar[Mapping[str, Recipe]] = {
        "vandenhende": AboutCentre(size=(480, 640), scale=(1.0, 1.2, 1.5), stepped=True),
        "astmt": AboutCentre(scale=(0.75, 1.25), rotation=20.0, nearer=False),
        "invpt": ScaledCrop(size=(448, 576)),
        "atrc": ScaledCrop(size=(425, 560)),
    }
    TASKS: ClassVar[Mapping[str, Task]] = {
        "semseg": SemanticSegmentation("semseg", classes=len(SEMSEG_NAMES), class_names=SEMSEG_NAMES),
        "depth": Depth("depth"),
        "normals": Normals("normals", scale=10.0),
        "edges": Edges("edges", scale=50.0, max_distance=0.011),
    }

    def downloads(self) -> list[Download]:
        """Returns ASTMT's archive; the others need a browser."""
        terms = "NYUD-v2: the terms of NYU Depth V2, see cs.nyu.edu."
        return [Download("https://data.vision.ee.ethz.ch/kmaninis/share/MTL/NYUD_MT.tgz", terms)]

    @classmethod
    def miniature(cls, folder: Path) -> Path:
        """Renders a small copy of the set; see `data_modules.miniatures`."""
        from .miniatures import write_nyud

        return write_nyud(folder)

    @classmethod
    def convert(cls, source: Path, folder: Path, watch: Callable[[int, int], None] = lambda done, total: None) -> Path:
        """Writes ``NYUD_MT`` from the authors' ``nyu_depth_v2_labeled.mat``; it lacks normals and edges.

        Args:
            source: That file. ``splits.mat`` lies beside it, and ``classMapping40.mat`` if segmentation is wanted.
            folder: Where ``NYUD_MT`` is put.
            watch: Called with the number of images written so far and in all.

        Raises:
            DataError: See `data_modules.dense.formats.nyu_labeled.write_nyud_mt`.
        """
        return write_nyud_mt(source, folder, watch)

    def decode(self, image: str, tasks: Collection[str]) -> tuple[Bytes, dict[str, Array]]:
        """Returns the photograph and the labels of ``tasks``; see `DenseData.decode`."""
        pixels = read.photo(self.files.path("image", image))
        size = (pixels.shape[0], pixels.shape[1])
        return pixels, {task: READERS[task](self.files.path(task, image), size) for task in tasks}


def semseg(path: Path, size: Size) -> Bytes:
    """Returns classes 0..39, 255 = ignore: (H, W). Stored: 0 = unlabelled, else class + 1."""
    matlab = read.ending(path) == ".mat"
    stored = read.matrix(path, "segmentation") if matlab else read.png(path, read.WHOLE, size)
    found = read.plane(path, stored, size)
    fine = ((found >= 0) & (found <= len(SEMSEG_NAMES)) & (found == np.floor(found))) | (found == IGNORE)
    read.check_values(path, f"classes are 0 (unlabelled) or 1..{len(SEMSEG_NAMES)}", found, fine)
    return np.where((found == 0) | (found == IGNORE), IGNORE, found - 1).astype(np.uint8)


def depth(path: Path, size: Size) -> NDArray[np.float32]:
    """Returns metres, 0 = no measurement: (H, W)."""
    return read.depth(path, read.matrix(path, "depth") if read.ending(path) == ".mat" else read.npy(path), size)


def normals(path: Path, size: Size) -> Array:
    """Returns 8-bit codes or float16 vectors, as stored: (H, W, 3)."""
    if read.ending(path) == ".npy":
        return read.normals(path, size)
    codes = read.png(path, ("RGB",), size)
    read.check_unit(path, codes * np.float32(2 / 255) - 1)
    return codes


def edges(path: Path, size: Size) -> Bytes:
    """Returns 0 or 1: (H, W)."""
    if read.ending(path) == ".npy":
        found = read.plane(path, read.npy(path), size)
        read.check_values(path, "edges lie in 0..1", found, (found >= 0) & (found <= 1))
    else:
        found = read.png(path, read.WHOLE, size)
    lines = read.mask(path, found)
    read.check_thin(path, lines)
    return lines


READERS: dict[str, Callable[[Path, Size], Array]] = {
    "semseg": semseg, "depth": depth, "normals": normals, "edges": edges,
}  # fmt: skip
