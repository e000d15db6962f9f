"""Where PASCAL-Context in its multi-task layout lies on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..files import ListedFiles


class PascalFiles(ListedFiles):
    """``PASCAL_MT`` (ASTMT, Vandenhende, ATRC) or ``PASCALContext`` (InvPT, TaskPrompter): the same content.

    ``ImageSets/Parts`` of the reference loaders is neither read nor written: whether an image has parts is seen in its
    labels.
    """

    TITLE: ClassVar[str] = "PASCAL-Context"
    FOLDERS: ClassVar[tuple[str, ...]] = ("", "PASCAL_MT", "PASCALContext")
    LISTS: ClassVar[str] = "ImageSets/Context"
    SOURCES: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {
        "image": (("JPEGImages", ".jpg"),),
        "semseg": (("semseg/VOC12", ".png"), ("semseg/pascal-context", ".png")),
        "context": (("pascal-context/trainval", ".mat"),),
        "parts": (("human_parts", ".mat"),),
        "saliency": (("sal_distill", ".png"),),
        "normals": (("normals_distill", ".png"),),
    }
    NEEDS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "semseg": ("semseg",),
        "parts": ("parts",),
        "saliency": ("saliency",),
        "normals": ("normals", "context"),
        "edges": ("context",),
    }
    REMEDY: ClassVar[str] = (
        "Unpack PASCAL_MT.tgz (data.vision.ee.ethz.ch/kmaninis/share/MTL/PASCAL_MT.tgz; trouble was reported in 2023) "
        "or PASCALContext.tar.gz (OneDrive folder linked in the InvPT and MLoRE READMEs; the copy at "
        "data.vision.ee.ethz.ch/brdavid/atrc/ is gone) and give the folder that holds it as the root. The photographs "
        "are under the VOC and Flickr terms, the archive states no licence, so mtlbench cannot ship it. "
        "SAMPLE=1 renders a miniature instead."
    )
