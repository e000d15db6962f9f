"""Sets in MTAN's form: ``<split>/<kind>/<n>.npy``, preprocessed to one size, and how their arrays are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from mtlbench.errors import DataError
from mtlbench.tasks import IGNORE

from . import decoding as read
from .decoding import Bytes, Size
from .files import Files


class NumberedFiles(Files):
    """One folder per split and kind, files numbered from 0 without leading zeros. An id is ``<split>/<n>``.

    Attributes:
        SOURCES: Kind of file -> (folder within the split, ending).
    """

    SOURCES: ClassVar[Mapping[str, tuple[str, str]]]

    def recognise(self, folder: Path) -> bool:
        """Returns whether the training images lie there."""
        place, ending = self.SOURCES["image"]
        return any(read.ending(path) == ending for path in (folder / "train" / place).glob("[!.]*"))

    def sought(self) -> str:
        """Returns the pattern of training images."""
        place, ending = self.SOURCES["image"]
        return f"train/{place}/*{ending}"

    def read_ids(self, split: str) -> list[str]:
        """Returns the numbers of the images, in order."""
        place, ending = self.SOURCES["image"]
        stems = self.stems(f"{split}/{place}", ending)
        odd = [stem for stem in stems if not stem.isdecimal()]
        if odd:
            raise DataError(
                f"{self.TITLE}: images are numbered. {self.base() / split / place} holds {odd[0]}{ending}. Remove it."
            )
        return [f"{split}/{number}" for number in sorted(stems, key=int)]

    def candidates(self, kind: str, image: str) -> list[str]:
        """Returns the one name that a file has."""
        split, _, number = image.partition("/")
        place, ending = self.SOURCES[kind]
        return [f"{split}/{place}/{number}{ending}"]

    def places(self, kind: str) -> list[str]:
        """Returns the folder within the training split."""
        return [f"train/{self.SOURCES[kind][0]}"]


def image(path: Path) -> Bytes:
    """Returns an image of floats in [0, 1] as RGB uint8, (H, W, 3)."""
    found = read.npy(path)
    if found.ndim != 3 or found.shape[2] != 3 or not found.size:
        raise read.fault(path, "an image has the shape (height, width, 3)", f"{found.shape}")
    read.check_values(path, "an image lies in 0..1", found, (found >= 0) & (found <= 1))
    shares = found if found.dtype.kind == "f" else found.astype(np.float64)
    return (shares * 255 + 0.5).astype(np.uint8)


def classes(path: Path, count: int, size: Size) -> Bytes:
    """Returns class ids, 255 = ignore, from 0..count-1 and -1: (H, W)."""
    found = read.plane(path, read.npy(path), size)
    fine = (found >= -1) & (found < count) & (found == np.floor(found))
    read.check_values(path, f"classes are 0..{count - 1}, or -1 for ignore", found, fine)
    return np.where(found < 0, IGNORE, found).astype(np.uint8)
