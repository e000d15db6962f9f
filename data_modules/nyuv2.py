"""NYUv2 with three tasks at 288 x 384 and 13 classes: the form of MTAN, LibMTL and auto-lambda."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import ClassVar

from mtlbench.tasks import Depth, SemanticSegmentation, Task
from mtlbench.tasks.taskonomy import CosineNormals

from .dense import DenseData, numbered_files
from .dense import decoding as read
from .dense.decoding import Array, Bytes
from .dense.recipes import Recipe, ZoomedCrop


class NYUv2Files(numbered_files.NumberedFiles):
    """``nyuv2/{train,val}/{image,label,depth,normal}/<n>.npy``."""

    TITLE: ClassVar[str] = "NYUv2 of MTAN"
    FOLDERS: ClassVar[tuple[str, ...]] = ("", "nyuv2", "NYUv2")
    SOURCES: ClassVar[Mapping[str, tuple[str, str]]] = {
        "image": ("image", ".npy"),
        "semseg": ("label", ".npy"),
        "depth": ("depth", ".npy"),
        "normals": ("normal", ".npy"),
    }
    NEEDS: ClassVar[Mapping[str, tuple[str, ...]]] = {name: (name,) for name in ("semseg", "depth", "normals")}
    REMEDY: ClassVar[str] = (
        "Get the folder nyuv2 from the Dropbox link in the README of MTAN (lorenmt/mtan) and give it as the root. The "
        "terms are those of NYU Depth V2. SAMPLE=1 renders a miniature instead."
    )


class NYUv2(DenseData):
    """NYUv2 at 288 x 384: 795 training and 654 test images, 13 classes, depth in metres, normals.

    Recipes: ``mtan``: no augmentation, as in the paper. ``mtan_augmented``: a crop of 1, 1/1.2 or 1/1.5 of the sides
    enlarged back, depth divided by the same, and a flip. The image is normalised as the encoder wants it; MTAN and
    LibMTL feed values in [0, 1]. Normals are invalid where their length is 0, not where their sum is.

    Args:
        **options: Of `DenseData`.
    """

    FILES = NYUv2Files
    AXES: ClassVar[str] = "right-up"
    RECIPES: ClassVar[Mapping[str, Recipe]] = {
        "mtan": ZoomedCrop(size=(288, 384), flip=0.0, scale=(1.0,)),
        "mtan_augmented": ZoomedCrop(size=(288, 384)),
    }
    TASKS: ClassVar[Mapping[str, Task]] = {
        "semseg": SemanticSegmentation("semseg", classes=13),
        "depth": Depth("depth"),
        "normals": CosineNormals("normals"),
    }

    @classmethod
    def miniature(cls, folder: Path) -> Path:
        """Renders a small copy of the set; see `data_modules.miniatures`."""
        from .miniatures import write_nyuv2

        return write_nyuv2(folder)

    def decode(self, image: str, tasks: Collection[str]) -> tuple[Bytes, dict[str, Array]]:
        """Returns the image and the labels of ``tasks``; see `DenseData.decode`."""
        files = self.files
        pixels = numbered_files.image(files.path("image", image))
        size = (pixels.shape[0], pixels.shape[1])
        readers: dict[str, Callable[[], Array]] = {
            "semseg": lambda: numbered_files.classes(files.path("semseg", image), 13, size),
            "depth": lambda: read.depth(files.path("depth", image), read.npy(files.path("depth", image)), size),
            "normals": lambda: read.normals(files.path("normals", image), size),
        }
        return pixels, {task: readers[task]() for task in tasks}
