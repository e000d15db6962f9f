"""PASCAL-Context with five dense tasks: the set of ASTMT, Vandenhende, ATRC and InvPT."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data_modules import pascal_labels as labels
from data_modules.pascal_files import NEEDS, PascalFiles
from data_modules.warp import AXES, Nearest, Warp
from mtlbench.data import MTLDataModule, Sample
from mtlbench.errors import DataError, SuiteError
from mtlbench.tasks import IGNORE, Edges, HumanParts, Normals, Saliency, SemanticSegmentation, Task

CACHE_LIMIT = 2**30
"""Bytes of decoded images and labels that are kept in memory; a larger set is decoded anew for each sample."""


class Pascal(MTLDataModule):
    """PASCAL-Context in its multi-task layout (``PASCAL_MT`` or ``PASCALContext``), read-only.

    Training and validation images are stretched to one size, as in the protocol of Vandenhende et al. (2021);
    training adds a flip, a scaling and a rotation. A single-task and a multi-task run see the same images: images
    without people stay in the list even if human parts are the only task, unlike in the reference loaders.

    Args:
        root: The folder that contains ``PASCAL_MT/`` or ``PASCALContext/``, or that folder itself.
        size: Height and width of the samples in pixels; one number makes a square.
        flip: Probability of a mirrored training image.
        scale: Smallest and largest enlargement of a training image.
        rotation: Largest turn of a training image, degrees, to either side.
        fill: Label of pixels that the warp brings in from outside: 255 = ignore, or 0 = background, as in the
            reference code. Normals are ignored there in any case.
        normals_axes: Where the stored channels 0 and 1 point: a key of `data_modules.warp.AXES`. No source says; the
            default is what the reference code's rotation assumes.
        cache: Keep decoded images in memory if the whole set fits into `CACHE_LIMIT`.
        **common: ``tasks``, ``batch_size``, ``steps``, ``seed``, ``workers``, ``micro`` of `MTLDataModule`.

    Raises:
        SuiteError: An option is outside its range.
    """

    TASKS: ClassVar[Mapping[str, Task]] = {
        "semseg": SemanticSegmentation("semseg", classes=len(labels.SEMSEG_NAMES), class_names=labels.SEMSEG_NAMES),
        "parts": HumanParts("parts", scale=2.0, classes=len(labels.PART_NAMES), class_names=labels.PART_NAMES),
        "saliency": Saliency("saliency", scale=5.0),
        "normals": Normals("normals", scale=10.0),
        "edges": Edges("edges", scale=50.0),
    }
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val")

    def __init__(
        self, root: str | None = None, *, size: int | Sequence[int] = 512, flip: float = 0.5,
        scale: Sequence[float] = (0.75, 1.25), rotation: float = 20.0, fill: int = IGNORE,
        normals_axes: str = "left-up", cache: bool = True, **common: Any,
    ):  # fmt: skip
        super().__init__(root, **common)
        shape = (size, size) if isinstance(size, int) else tuple(size)
        _require(len(shape) == 2 and min(shape) > 0, "size", "a positive number or [height, width]", size)
        _require(0 <= flip <= 1, "flip", "a probability", flip)
        _require(len(scale) == 2 and 0 < scale[0] <= scale[1], "scale", "[lowest, highest] above 0", scale)
        _require(0 <= rotation <= 180, "rotation", "0..180 degrees", rotation)
        _require(fill in (0, IGNORE), "fill", f"0 or {IGNORE}", fill)
        _require(normals_axes in AXES, "normals_axes", f"one of {', '.join(AXES)}", normals_axes)
        self.height, self.width = shape
        self.flip, self.scale, self.rotation = flip, (scale[0], scale[1]), rotation
        self.fill, self.normals_axes, self.cache = fill, normals_axes, cache
        self.files = PascalFiles(root)
        self._samples: dict[str, _Samples] = {}

    def samples(self, split: str) -> _Samples:
        """Returns one split: ``image`` uint8 (3, H, W), targets as their tasks say, ``aspect`` for the warp.

        Raises:
            DataError: Files are absent (at once) or unreadable (when read; at once if the set is cached).
        """
        if split not in self._samples:
            absent = self.missing()
            if absent:
                raise DataError("\n".join(absent))
            tasks = self._readable()

            def read(image: str) -> Decoded:
                return decode(self.files, image, tasks, self.height, self.width)

            self._samples[split] = _Samples(self.files.ids(split), read, keep=self.cache and self._small(tasks))
        return self._samples[split]

    def augment(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Returns the sample flipped, scaled and turned; the normals turn with the picture."""
        warp = Warp.draw(generator, flip=self.flip, rotation=self.rotation, scale=self.scale, aspect=sample["aspect"])
        nearest = Nearest(warp.matrix(self.height, self.width), self.height, self.width)
        targets = {}
        for task, label in sample["targets"].items():
            if task == "normals":
                warped = nearest(warp.normals(label.numpy(), self.normals_axes), IGNORE)
            else:
                warped = nearest(label.numpy(), self.fill)
            if task != "parts" or _has_parts(warped):
                targets[task] = torch.from_numpy(warped)
        return {**sample, "image": torch.from_numpy(warp.image(sample["image"].numpy())), "targets": targets}

    def missing(self) -> list[str]:
        """Returns what the requested tasks lack; optional tasks whose folders are all absent are no fault."""
        return self.files.missing(self._readable(), self.SPLITS)

    def absent_tasks(self) -> set[str]:
        """Returns the tasks for which a whole folder is absent."""
        return {task for task in self.tasks if self.files.absent(task)}

    def fingerprint(self) -> str:
        """Returns a hash of the ids of the splits and the sizes of the files that this run reads."""
        return self.files.fingerprint(self._readable(), self.SPLITS)

    def steps_per_epoch(self) -> int:
        """Returns optimiser steps in one pass over the training split, without decoding it."""
        return max(1, len(self.files.ids("train")) // self.batch_size)

    def _readable(self) -> list[str]:
        absent = self.absent_tasks()
        return [name for name, task in self.tasks.items() if not (task.optional and name in absent)]

    def _small(self, tasks: Collection[str]) -> bool:
        layers = 3 + sum(3 if task == "normals" else 1 for task in tasks)
        images = sum(len(self.files.ids(split)) for split in self.SPLITS)
        return images * self.height * self.width * layers <= CACHE_LIMIT


@dataclass(frozen=True)
class Decoded:
    """One image and its labels at the run's size, a byte a value.

    Attributes:
        image: (3, H, W) RGB.
        targets: Task -> (H, W), or (3, H, W) for normals; a missing label is absent.
        aspect: Height / width of the photograph.
    """

    image: labels.Bytes
    targets: dict[str, labels.Bytes]
    aspect: float


def decode(files: PascalFiles, image: str, tasks: Collection[str], height: int, width: int) -> Decoded:
    """Returns one image with the labels of ``tasks``, stretched: the photograph cubic, labels to the nearest pixel.

    Raises:
        DataError: A file is absent, damaged, of another size than the photograph, or holds a wrong class.
    """
    photo = labels.image(files.path("image", image))
    size = (photo.shape[0], photo.shape[1])
    needed = any("context" in NEEDS[task] for task in tasks)
    context = labels.context(files.path("context", image), size) if needed else np.zeros(size, np.int32)
    readers: dict[str, Callable[[], labels.Bytes]] = {
        "semseg": lambda: labels.semseg(files.path("semseg", image), size),
        "parts": lambda: labels.parts(files.path("parts", image), size),
        "saliency": lambda: labels.saliency(files.path("saliency", image), size),
        "normals": lambda: labels.normals(files.path("normals", image), context),
        "edges": lambda: labels.edges(context),
    }

    def stretch(pixels: labels.Bytes, how: Image.Resampling) -> labels.Bytes:
        stretched = np.array(Image.fromarray(pixels).resize((width, height), how))
        return np.ascontiguousarray(stretched.transpose(2, 0, 1)) if stretched.ndim == 3 else stretched

    targets = {task: stretch(readers[task](), Image.Resampling.NEAREST) for task in tasks}
    if "parts" in targets and not _has_parts(targets["parts"]):
        del targets["parts"]
    return Decoded(stretch(photo, Image.Resampling.BICUBIC), targets, size[0] / size[1])


class _Samples:
    """The images of one split, decoded when asked for, or all at once if they are kept."""

    def __init__(self, ids: list[str], read: Callable[[str], Decoded], *, keep: bool):
        self.ids, self.read = ids, read
        # Read before the loader forks its workers, so that all of them share one copy.
        self.kept = [read(image) for image in ids] if keep else None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        found = self.kept[index] if self.kept else self.read(self.ids[index])
        targets = {task: torch.from_numpy(_target(task, label)) for task, label in found.targets.items()}
        image = torch.from_numpy(found.image)
        return {"image": image, "targets": targets, "id": self.ids[index], "aspect": found.aspect}


def _target(task: str, label: labels.Bytes) -> NDArray:
    if task in ("semseg", "parts"):
        return label.astype(np.int64)
    if task != "normals":
        return label.astype(np.float32)[None]
    vectors = label.astype(np.float32) * (2 / 255) - 1
    length = np.sqrt((vectors**2).sum(0, keepdims=True))
    # Eight bits have no exact zero: what is far from a unit vector is none.
    return np.where(length < 0.5, np.float32(IGNORE), vectors / length)


def _has_parts(label: NDArray) -> bool:
    return bool(((label != 0) & (label != IGNORE)).any())


def _require(fine: bool, option: str, rule: str, found: Any) -> None:
    if not fine:
        raise SuiteError(f"Pascal's {option} must be {rule}. Found {found!r}. Change data.{option} in the suite.")
