"""`DenseData`: the base of data sets that consist of photographs and label files."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mtlbench.data import MTLDataModule, Sample
from mtlbench.data.download import Download
from mtlbench.data.windows import Window
from mtlbench.errors import DataError, SuiteError, unknown_name
from mtlbench.tasks import IGNORE

from .cache import Decoded, Stored, cached
from .decoding import Array, Bytes, orientation
from .files import Files
from .fit import Fit
from .recipes import Recipe
from .shards import ShardedFiles, Shards
from .warp import AXES

SHARD = 256
"""Samples of a shard."""


class DenseData(MTLDataModule):
    """Photographs with dense labels in files, read-only. A subclass says where files lie and how one is decoded.

    A single-task and a multi-task run see the same images. Labels that an image lacks are missing targets.

    Args:
        root: The folder of the data set, or the one that contains it.
        size: Height and width of the samples in pixels; one number makes a square; None = the recipe's.
        recipe: Key of `RECIPES`: the recipe of the literature for size, augmentation and test view.
        flip: Probability of a mirrored training image; None = the recipe's. So for the next three.
        scale: Smallest and largest enlargement of a training image, or the choices of recipes in steps.
        rotation: Largest turn of a training image, degrees, to either side.
        fill: Label of pixels that the warp brings in from outside: 255 = ignore, or 0 = background, as in the
            reference code of ASTMT and Vandenhende. Depth and normals are ignored there in any case.
        normals_axes: Where the stored channels 0 and 1 of the normals point: a key of `data_modules.dense.warp.AXES`;
            None = what the reference code assumes.
        window: Shuffle training samples within a window that moves over this many shards, for data that do not fit on
            a disk; None shuffles all of them. See `mtlbench.data.windows`.
        shard: Samples of a shard; None = 256. Only with ``window``.
        source: URL or folder of shards, from which samples are read instead of from files; see
            `data_modules.dense.shards`. Needs ``window``.
        space: GB of the local disk that all streamed data of this machine may take together.
        **common: ``tasks``, ``batch_size``, ``steps``, ``seed``, ``workers``, ``micro`` of `MTLDataModule`.

    Attributes:
        FILES: Finds the files.
        RECIPES: Name -> recipe, the default first.
        AXES: Default of ``normals_axes``.

    Raises:
        SuiteError: An option is outside its range.
    """

    PLACES: ClassVar[tuple[str, ...]] = ("source", "space")
    RENAMED: ClassVar[Mapping[str, str]] = {"recipe": "protocol"}
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val")
    FILES: ClassVar[type[Files]]
    RECIPES: ClassVar[Mapping[str, Recipe]]
    AXES: ClassVar[str] = "left-up"

    def __init__(
        self,
        root: str | None = None,
        *,
        size: int | Sequence[int] | None = None,
        recipe: str | None = None,
        flip: float | None = None,
        scale: Sequence[float] | None = None,
        rotation: float | None = None,
        fill: int | None = None,
        normals_axes: str | None = None,
        window: int | None = None,
        shard: int | None = None,
        source: str | None = None,
        space: float = 50.0,
        **common: Any,
    ):
        if "protocol" in common:
            raise SuiteError(
                f"{type(self).__name__}: the option that names the augmentation is called recipe. Found protocol: "
                f"{common['protocol']!r}. Write data.options.recipe instead of data.options.protocol."
            )
        super().__init__(root, **common)
        name = recipe or next(iter(self.RECIPES))
        if name not in self.RECIPES:
            raise SuiteError(unknown_name("recipe", name, self.RECIPES) + " Change data.options.recipe in the suite.")
        own = self.RECIPES[name]
        if size is None:
            size = own.size
        shape = (size, size) if isinstance(size, int) else tuple(size)
        self._require(len(shape) == 2 and min(shape) > 0, "size", "a positive number or [height, width]", size)
        changes: dict[str, Any] = {
            "size": shape,
            "flip": flip,
            "scale": tuple(scale) if scale is not None else None,
            "rotation": rotation,
            "fill": fill,
        }
        self.recipe = replace(own, **{key: value for key, value in changes.items() if value is not None})
        self.normals_axes = normals_axes or self.AXES
        self._check()
        self._set_window(window, shard, source, space)
        self.files: Any = ShardedFiles(self) if source else self.open_files(root)
        self._samples: dict[str, _Samples] = {}

    @abstractmethod
    def decode(self, image: str, tasks: Collection[str]) -> tuple[Bytes, dict[str, Array]]:
        """Returns one photograph (H, W, 3) and its labels, (H, W) or (H, W, C), of the same height and width.

        A label has the form that `mtlbench.tasks.Task.restore` of its task reads. Of the shipped kinds: class ids are
        uint8; binary maps uint8 0, 1 or 255; normals 8-bit codes or floats with 0 for none; depth float32 metres,
        0 = none; values floats with 255 for none. Whole-image labels are (C,). A label that is missing is left out.

        Raises:
            DataError: A file is absent, damaged, of another size than the photograph, or holds a wrong value.
        """

    def _set_window(self, window: int | None, shard: int | None, source: str | None, space: float) -> None:
        def whole(value: Any) -> bool:
            return value is None or isinstance(value, int) and not isinstance(value, bool) and value > 0

        self._require(whole(window), "window", "a whole number of shards from 1", window)
        self._require(whole(shard), "shard", "a whole number of samples from 1", shard)
        self._require(source is None or isinstance(source, str), "source", "a URL or a folder", source)
        self._require(isinstance(space, int | float) and space > 0, "space", "a number of GB above 0", space)
        if source and window is None:
            raise SuiteError(
                f"{type(self).__name__}: streamed samples are shuffled within a window of shards, which is part of the "
                f"result. Found source: {source!r} without a window. Set data.options.window, for example to 16."
            )
        if shard and window is None and not source:
            raise SuiteError(
                f"{type(self).__name__}: the size of a shard matters within a window. Found shard: {shard} without "
                "one. Set data.options.window, or leave data.options.shard out."
            )
        self.shard_size, self.source, self.space = shard or SHARD, source, space
        self.window = Window(window, self.shard_size) if window else None

    def variant(self) -> dict[str, Any]:
        """Returns the options of the subclass that decide which samples there are and what they hold. Default: none."""
        return {}

    def open_files(self, root: str | None) -> Files:
        """Returns the files; a subclass may hand on options."""
        return self.FILES(root)

    def samples(self, split: str) -> _Samples:
        """Returns one split: ``image`` uint8 (3, H, W), targets as their tasks say, ``frame`` and ``aspect``.

        Raises:
            DataError: Files are absent (at once) or unreadable (when read; at once if a cache is built).
        """
        if split not in self._samples and self.source:
            self._samples[split] = _Samples(self, split, Shards(self.files, split, self.readable()))
        if split not in self._samples:
            stored = cached(f"{type(self).__name__.lower()}-{split}", lambda: self._key(split), self._decoder(split))
            self._samples[split] = _Samples(self, split, stored)
        return self._samples[split]

    def originals(self, split: str) -> _Samples:
        """Returns the samples of a split straight from files or shards, whatever a cache holds."""
        return self.samples(split) if self.source else _Samples(self, split, self._decoder(split))

    def doubts(self, split: str) -> list[str]:
        """Returns a line if photographs carry an EXIF orientation, which is not applied to them or to their labels."""
        turned = self.images_with("image", split, lambda path: orientation(path) != 1)
        if not turned:
            return []
        return [
            f"image: {few(turned)} an EXIF orientation, which is not applied: labels must lie as the pixels are "
            "stored. Turn photograph and labels upright and remove the orientation if they do not."
        ]

    def images_with(self, kind: str, split: str, holds: Callable[[Path], bool]) -> list[str]:
        """Returns the names of the files of a kind for which something holds, without absent and damaged files."""
        found = []
        for name in (self.files.find(kind, image) for image in self.files.ids(split)):
            with suppress(DataError):  # a fault of its own, which reading the sample names
                if name is not None and holds(self.files.base() / name):
                    found.append(name)
        return found

    def shard(self, url: str, watch: Callable[[str, int, int], None] = lambda split, done, total: None) -> int:
        """Writes the decoded samples as shards, those that are missing; see `data_modules.dense.shards`."""
        from .shard_writer import write_shards

        return write_shards(self, url, watch)

    def downloads(self) -> list[Download]:
        """Returns the archives that a program may fetch; none where a registration or a browser is needed."""
        return []

    def prepare_data(self) -> None:
        """Decodes the images that the cache does not hold yet."""
        for split in self.SPLITS:
            self.samples(split)

    def augment(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Returns the sample as the recipe changes it; labels follow by their own rules."""
        return self._informative(self.recipe.augment(sample, generator, self.tasks, self.normals_axes))

    def view(self, sample: Sample) -> Sample:
        """Returns a training sample in the recipe's test view."""
        return self._informative(self.recipe.view(sample))

    def _informative(self, sample: Sample) -> Sample:
        """Returns the sample without the labels that carry no information any more."""
        targets = {name: t for name, t in sample["targets"].items() if not self.tasks[name].vacant(t.numpy())}
        return {**sample, "targets": targets}

    def missing(self) -> list[str]:
        """Returns the missing files of the requested tasks; an optional task may lack all of its folders."""
        return self.files.missing(self.readable(), self.SPLITS)

    def absent_tasks(self) -> set[str]:
        """Returns the tasks for which a whole folder is absent."""
        return {task for task in self.tasks if self.files.absent(task)}

    def fingerprint(self) -> str:
        """Returns a hash of the ids of the splits and the sizes of the files that this run reads.

        With a window, it is made from a hash for each task, which shards keep: they do not hold the names of all files.
        """
        if self.window:
            found = [(task, self.files.fingerprint([task], self.SPLITS)) for task in sorted(self.readable())]
            return hashlib.blake2b(repr(found).encode(), digest_size=16).hexdigest()
        return self.files.fingerprint(self.readable(), self.SPLITS)

    def sample_count(self, split: str) -> int | None:
        """Returns the number of ids in the list of a split."""
        return len(self.files.ids(split))

    def steps_per_epoch(self) -> int:
        """Returns optimiser steps in one pass over the training split, without decoding it."""
        if self.labels:
            return super().steps_per_epoch()
        return max(1, len(self.files.ids("train")) // self.batch_size)

    def readable(self) -> list[str]:
        """Returns the tasks that are read: all but optional ones without data."""
        absent = self.absent_tasks()
        return [name for name, task in self.tasks.items() if not (task.optional and name in absent)]

    def _decoder(self, split: str) -> _Decoder:
        absent = self.missing()
        if absent:
            raise DataError("\n".join(absent))
        return _Decoder(self, self.files.ids(split))

    def _key(self, split: str) -> str:
        files = self.files.fingerprint(self.readable(), [split], dates=True) if self.files.folder else ""
        how: tuple[Any, ...] = (self.recipe.fit, self.recipe.stored, self.recipe.outside, self.recipe.image_how)
        how += ("whole edges",) if self.recipe.whole_edges else ()
        return repr((type(self).__qualname__, self.VERSION, sorted(self.readable()), how, files))

    def _check(self) -> None:
        recipe = self.recipe
        self._require(0 <= recipe.flip <= 1, "flip", "a probability", recipe.flip)
        ordered = all(value > 0 for value in recipe.scale) and list(recipe.scale) == sorted(recipe.scale)
        pair = len(recipe.scale) == 2 or recipe.stepped and len(recipe.scale) > 0
        self._require(ordered and pair, "scale", "[lowest, highest] above 0, or choices in order", recipe.scale)
        self._require(0 <= recipe.rotation <= 180, "rotation", "0..180 degrees", recipe.rotation)
        self._require(recipe.fill in (0, IGNORE), "fill", f"0 or {IGNORE}", recipe.fill)
        self._require(self.normals_axes in AXES, "normals_axes", f"one of {', '.join(AXES)}", self.normals_axes)

    def _require(self, fine: bool, option: str, rule: str, found: Any) -> None:
        if not fine:
            name = type(self).__name__
            raise SuiteError(
                f"{name}'s {option} must be {rule}. Found {found!r}. Change data.options.{option} in the suite."
            )


def few(names: Sequence[str]) -> str:
    """Returns how many files there are, with an example, as the beginning of a sentence."""
    return f"{names[0]} carries" if len(names) == 1 else f"{len(names)} files, for example {names[0]}, carry"


class _Decoder:
    """Decodes an image when asked for it, and brings image and labels to the stored size."""

    def __init__(self, data: DenseData, ids: list[str]):
        self.data, self.ids = data, ids
        self.tasks = data.readable()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Decoded:
        photo, labels = self.data.decode(self.ids[index], self.tasks)
        recipe = self.data.recipe
        fit = Fit.stretch if recipe.fit == "stretch" else Fit.pad
        return fit(photo, labels, recipe, self.data.tasks)


class _Samples:
    """One split as the contract of `mtlbench.data` wants it. Splits other than training are in the test view."""

    def __init__(self, data: DenseData, split: str, stored: Stored):
        self.data, self.stored, self.ids, self.training = data, stored, data.files.ids(split), split == "train"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        found = self.stored[index]
        tasks = self.data.tasks
        made = {name: tasks[name].restore(label) for name, label in found.labels.items()}
        targets = {name: torch.from_numpy(t) for name, t in made.items() if not tasks[name].vacant(t)}
        sample = {
            "image": torch.from_numpy(found.image),
            "targets": targets,
            "id": self.ids[index],
            "frame": found.frame,
            "aspect": found.aspect,
        }
        return sample if self.training else self.data.recipe.view(sample)

    @property
    def prefetch(self) -> Callable[[Sequence[int]], None] | None:
        """Fetches samples that are read next, if they are streamed; see `mtlbench.data.windows.Ahead`."""
        return getattr(self.stored, "prefetch", None)
