"""`Folder`: a folder of images, with a CSV file of labels and folders of masks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from mtlbench.data import Sample, Samples
from mtlbench.errors import DataError, SuiteError
from mtlbench.tasks.inputs import IMAGES
from mtlbench.visualise import rgb

from .dense import decoding
from .table import Table
from .tabular.targets import COLUMNS, MASKS, Target, read_targets


class Folder(Table):
    """Images that the rows of a CSV file name, with labels in its cells, and masks in folders.

    An empty cell and an absent mask are missing labels; that image trains the other tasks only.

    Args:
        root: Folder of everything.
        file: The CSV file within ``root``.
        image: Its column with the name of the image.
        images: Folder of the images within ``root``.
        targets: As of a `Table`; and ``{kind: segmentation, folder: masks, classes: [sky, road]}`` for masks with the
            name of the image and the ending ``.png``, whose pixels are the index of a class, or 255 without a label.
        size: Height and width to which images and masks are resized; none if all have the size of
            ``model.image_size``.
        mirror: Whether half of the training images are mirrored. Leave it out if a label tells left from right.
        split: See `Table`.
        **common: See `MTLDataModule`.
    """

    VERSION: ClassVar[int] = 1
    INPUTS: ClassVar[str] = IMAGES

    def __init__(
        self,
        root: str | None = None,
        *,
        file: str = "labels.csv",
        image: str = "file",
        images: str = "images",
        targets: Mapping[str, Any] | None = None,
        size: Sequence[int] = (),
        mirror: bool = False,
        split: Mapping[str, Any] | None = None,
        **common: Any,
    ):
        super().__init__(root, file=file, targets=targets, split=split, **common)
        if size and not (len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
            raise SuiteError(f"data.options.size is height and width in pixels. Found {list(size)}.")
        self.image, self.images, self.size, self.mirror = image, images, tuple(size), mirror

    @classmethod
    def targets_of(cls, options: Mapping[str, Any]) -> dict[str, Target]:
        """Returns the targets that options describe."""
        return read_targets(options.get("targets"), {**COLUMNS, **MASKS})

    @property
    def base(self) -> Path:
        """The folder of everything."""
        return Path(self.root or ".").expanduser()

    def missing(self) -> list[str]:
        """Returns a line for the table, and for every folder, that is absent."""
        folders = [self.images, *(target.folder for target in self.targets.values() if target.folder)]
        absent = [self.base / folder for folder in folders if not os.path.isdir(self.base / folder)]
        return super().missing() + [f"There is no folder {folder}. Correct the suite, or DATA=." for folder in absent]

    def fingerprint(self) -> str:
        """Returns a hash of the content of the table, and of the sizes of all images and masks."""
        digest = hashlib.blake2b(self.path.read_bytes(), digest_size=8)
        for place in self._places:
            for path in (place, *(self._mask(target, place) for target in self.targets.values() if target.folder)):
                digest.update(str(path.stat().st_size if path.is_file() else -1).encode())
        return digest.hexdigest()

    def input_sizes(self) -> dict[str, int]:
        """Returns nothing: the size of images is that of the suite."""
        return {}

    def samples(self, split: str) -> Samples:
        """Returns the images of a split, which are read one by one."""
        return _Images(self, split, self._rows[split])

    def augment(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Mirrors half of the training images with their masks, if the suite says so."""
        if not self.mirror or generator.random() < 0.5:
            return sample
        dense = {name for name, task in self.tasks.items() if task.dense}
        targets = {name: t.flip(-1) if name in dense else t for name, t in sample["targets"].items()}
        return {**sample, "image": sample["image"].flip(-1), "targets": targets}

    def sample(self, split: str, row: int) -> Sample:
        """Reads the image and the masks of a row.

        Raises:
            DataError: A file is absent, damaged or of another size.
        """
        place = self._places[row]
        pixels = torch.from_numpy(_read_photo(place)).permute(2, 0, 1)
        targets = {name: values[row] for name, (values, known) in self._labels.items() if known[row]}
        for name in self.tasks.keys() - self._labels.keys():
            mask = self._mask(self.targets[name], place)
            if mask.is_file():
                classes = decoding.png(mask, decoding.WHOLE, (pixels.shape[1], pixels.shape[2]))
                targets[name] = _resized_mask(torch.from_numpy(classes.astype(np.int64)), self.size)
        return {"image": _resized(pixels, self.size), "targets": targets, "id": f"{split}/{place.name}"}

    @cached_property
    def _places(self) -> list[Path]:
        self._check_known(self._frame, [self.image], self.path)
        names = self._frame[self.image]
        if names.isna().any():
            raise DataError(f"Every row of {self.path} names an image. The column {self.image} has an empty cell.")
        return [self.base / self.images / str(name) for name in names]

    @cached_property
    def _labels(self) -> dict[str, tuple[Tensor, Tensor]]:
        wanted = {name: self.targets[name] for name in self.tasks if not self.targets[name].folder}
        found = {name: target.encode(self._frame) for name, target in wanted.items()}
        return {name: (values, torch.from_numpy(known)) for name, (values, known) in found.items()}

    def _mask(self, target: Target, image: Path) -> Path:
        return self.base / target.folder / f"{image.stem}.png"


class _Images:
    """Images of a split as samples."""

    def __init__(self, data: Folder, split: str, rows: np.ndarray):
        self.data, self.split, self.rows = data, split, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self.data.sample(self.split, int(self.rows[index]))


def _read_photo(path: Path) -> np.ndarray:
    """Returns a photograph upright, as `mtlbench predict` reads it: RGB uint8 (H, W, 3)."""

    def read() -> np.ndarray:
        with Image.open(path) as picture:
            return rgb(ImageOps.exif_transpose(picture))

    return decoding.reading(path, read)


def _resized(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """Returns the image at another size, as `mtlbench predict` resizes it."""
    if not size or tuple(image.shape[1:]) == size:
        return image.contiguous()
    found = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)
    return found[0].round().to(torch.uint8)


def _resized_mask(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """Returns the class of the nearest pixel; classes have no values in between."""
    if not size or tuple(mask.shape) == size:
        return mask
    return F.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0].round().to(torch.int64)
