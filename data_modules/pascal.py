"""PASCAL-Context with five dense tasks: the set of ASTMT, Vandenhende, ATRC and InvPT."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from mtlbench.data.download import Download
from mtlbench.tasks import Edges, HumanParts, Normals, Saliency, SemanticSegmentation, Task

from .dense import DenseData
from .dense.decoding import Array, Bytes, photo
from .dense.formats import pascal_labels as labels
from .dense.formats.pascal_files import PascalFiles
from .dense.module import few
from .dense.recipes import AboutCentre, Recipe, ScaledCrop


class Pascal(DenseData):
    """PASCAL-Context in its multi-task layout (``PASCAL_MT`` or ``PASCALContext``).

    Recipes: ``vandenhende`` (the same as ASTMT's, but for the normalisation of the image): stretched to 512 x 512,
    scale 0.75..1.25, turn -20..20 degrees, flip. ``invpt`` (the same as ATRC's): the photograph keeps its size and is
    padded to 512 x 512; scale 0.5..2, crop, flip, colours.

    ``vandenhende_lines`` is ``vandenhende`` with edges that stay connected where ``size`` is below the photograph's; no
    published score uses it.

    Images without people stay in the list even if human parts are the only task, unlike in the reference loaders. No
    source says where the normals' axes point; the default is what the reference code's rotation assumes.

    Args:
        **options: Of `DenseData`.
    """

    VERSION: ClassVar[int] = 2
    FILES = PascalFiles
    RECIPES: ClassVar[Mapping[str, Recipe]] = {
        "vandenhende": AboutCentre(scale=(0.75, 1.25), rotation=20.0),
        "vandenhende_lines": AboutCentre(scale=(0.75, 1.25), rotation=20.0, whole_edges=True),
        "invpt": ScaledCrop(),
    }
    TASKS: ClassVar[Mapping[str, Task]] = {
        "semseg": SemanticSegmentation("semseg", classes=len(labels.SEMSEG_NAMES), class_names=labels.SEMSEG_NAMES),
        "parts": HumanParts("parts", scale=2.0, classes=len(labels.PART_NAMES), class_names=labels.PART_NAMES),
        "saliency": Saliency("saliency", scale=5.0),
        "normals": Normals("normals", scale=10.0),
        "edges": Edges("edges", scale=50.0),
    }

    def doubts(self, split: str) -> list[str]:
        """Adds a line if class maps carry another palette than VOC's: their indices may be another program's."""
        found = super().doubts(split)
        if "semseg" in self.tasks and (odd := self.images_with("semseg", split, labels.foreign_palette)):
            found.append(
                f"semseg: {few(odd)} a palette other than VOC's, and classes are the indices, whatever their colour. "
                "A program that sorted the colours anew has changed the classes."
            )
        return found

    def downloads(self) -> list[Download]:
        """Returns ASTMT's archive."""
        terms = "PASCAL-Context: photographs under the VOC and Flickr terms, the archive states no licence."
        return [Download("https://data.vision.ee.ethz.ch/kmaninis/share/MTL/PASCAL_MT.tgz", terms)]

    @classmethod
    def miniature(cls, folder: Path) -> Path:
        """Renders a small copy of the set; see `data_modules.miniatures`."""
        from .miniatures import write_pascal

        return write_pascal(folder)

    def decode(self, image: str, tasks: Collection[str]) -> tuple[Bytes, dict[str, Array]]:
        """Returns the photograph and the labels of ``tasks``; see `DenseData.decode`."""
        files = self.files
        pixels = photo(files.path("image", image))
        size = (pixels.shape[0], pixels.shape[1])
        needed = any("context" in files.NEEDS[task] for task in tasks)
        context = labels.context(files.path("context", image), size) if needed else np.zeros(size, np.int32)
        readers: dict[str, Callable[[], Array]] = {
            "semseg": lambda: labels.semseg(files.path("semseg", image), size),
            "parts": lambda: labels.parts(files.path("parts", image), size),
            "saliency": lambda: labels.saliency(files.path("saliency", image), size),
            "normals": lambda: labels.normals(files.path("normals", image), context),
            "edges": lambda: labels.edges(context),
        }
        found = {task: readers[task]() for task in tasks}
        if "parts" in found and not found["parts"].any():  # no person carries parts: missing, not background
            del found["parts"]
        return pixels, found
