"""Decoded samples in shards below a URL, read through a local folder of bounded size.

Below the URL lie::

    index.json                    # what the shards hold, and the checksum of every shard's about.json
    <split>/<number>/about.json   # ids, frames, which labels there are, sizes and checksums of the arrays
    <split>/<number>/<part>.npy   # image, or label-<task>: one row per sample, as the decode cache holds them

A run fetches the image and the labels of its own tasks. `data_modules.dense.shard_writer` writes shards.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtlbench.data.remote import Remote
from mtlbench.data.space import Space, room_of
from mtlbench.data.windows import Layout
from mtlbench.errors import DataError, MtlbenchError

from .cache import Decoded, folder_of_caches

if TYPE_CHECKING:
    from .module import DenseData

FORMAT = 1
INDEX = "index.json"
ABOUT = "about.json"

MARGIN = 2
"""Shards that the local space holds besides those of the window: the next one, and one of an evaluation."""

HEADER = 128
"""Bytes before the rows of an array."""

KEPT = 16
"""Descriptions of shards that a process keeps in memory besides those of the window."""


def folder_of(split: str, shard: int) -> str:
    """Returns the folder of a shard below the URL."""
    return f"{split}/{shard:06d}"


def content_of(data: DenseData) -> dict[str, Any]:
    """Returns what must agree between shards and a run: how samples are decoded, and which there are."""
    recipe = data.recipe
    how = [recipe.fit, list(recipe.stored), list(recipe.outside), recipe.image_how.name, recipe.whole_edges]
    return {"module": type(data).__qualname__, "version": data.VERSION, "decoded": how, "variant": data.variant()}


class ShardedFiles:
    """Stands in for `Files` where samples are read from shards: answers from their index, which is read once.

    Args:
        data: The data module. Its ``source`` is the URL.
    """

    folder = None

    def __init__(self, data: DenseData):
        self.data, self.remote = data, Remote(str(data.source))
        self.described = lru_cache(KEPT + (data.window.shards if data.window else 0))(self._described)

    @cached_property
    def index(self) -> dict[str, Any]:
        """The index.

        Raises:
            DataError: It cannot be read, or belongs to other data.
        """
        content = self.remote.read(INDEX)
        try:
            found = json.loads(content)
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']!r}")
            for dtype, _ in found["arrays"].values():
                if np.dtype(dtype).kind not in "biuf":
                    raise ValueError(f"an array of {dtype}")
            self._check(found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.remote.url}/{INDEX} must be an index of shards, as this version of mtlbench writes it. Found "
                f"{type(error).__name__}: {error}. Write the shards again with `mtlbench data SUITE --shard URL`."
            ) from error
        return {**found, "key": hashlib.blake2b(content, digest_size=8).hexdigest()}

    def _check(self, found: Mapping[str, Any]) -> None:
        wanted = {**content_of(self.data), "samples": self.data.shard_size}
        for key, value in json.loads(json.dumps(wanted)).items():
            if found[key] != value:
                name = {"samples": "data.options.shard"}.get(key, key)
                raise DataError(
                    f"Shards hold the samples that the suite asks for. {name}: the suite has {value!r}, the shards of "
                    f"{self.remote.url} {found[key]!r}. Change data.options in the suite, or write other shards."
                )

    def ids(self, split: str) -> _Ids:
        """Returns the ids of a split; each is read with its shard."""
        return _Ids(self, split)

    def size(self, split: str) -> int:
        """Returns the number of samples of a split."""
        return int(self.index["splits"][split]["samples"])

    def layout(self, split: str) -> Layout:
        """Returns the shards of a split."""
        return Layout(self.size(split), self.data.shard_size, spread=split == "train")

    def _described(self, split: str, shard: int) -> dict[str, Any]:
        """Returns the description of a shard: ids, frames, labels and files."""
        name, size = f"{folder_of(split, shard)}/{ABOUT}", len(self.layout(split).members(shard))
        found = json.loads(self.remote.read(name, self.index["splits"][split]["shards"][shard]))
        if len(found["ids"]) != size:
            raise DataError(
                f"A shard holds the samples that its place gives it. {self.remote.url}/{name} has {len(found['ids'])} "
                f"instead of {size}. Write the shards again."
            )
        return found

    def find(self, kind: str, image: str) -> None:
        """Returns nothing: there are no files of single images."""
        return None

    def absent(self, task: str) -> list[str]:
        """Returns the task if the shards were written without it."""
        try:
            return [] if task in self.index["fingerprints"] else [task]
        except DataError:
            return []  # which `missing` reports

    def missing(self, tasks: Iterable[str], splits: Iterable[str]) -> list[str]:
        """Returns why the shards cannot be read, or do not fit into the local space."""
        try:
            return self._lacks(list(tasks))
        except DataError as error:
            return [str(error)]

    def _lacks(self, tasks: list[str]) -> list[str]:
        if lost := [task for task in tasks if task not in self.index["fingerprints"]]:
            return [f"{', '.join(lost)}: not in the shards of {self.remote.url}. Write them with these tasks."]
        if folder_of_caches() is None:
            return ["Streamed data need local space, and MTLBENCH_CACHE is off. Let it name a folder."]
        parts = [row_bytes(self.index, part) for part in parts_of(self.index, tasks)]
        shard = sum(room_of(HEADER + self.data.shard_size * size) for size in parts)
        window = min(self.data.window.shards if self.data.window else 0, self.layout("train").count)
        needed = (window + MARGIN) * shard
        if needed <= self.data.space * 2**30:
            return []
        return [
            f"The local space holds the shards of the window and {MARGIN} more, for every run that trains at the same "
            f"time. {window} + {MARGIN} shards of {shard / 2**30:.3g} GB take {needed / 2**30:.3g} GB, and "
            f"data.options.space is {self.data.space:g}. Raise it, or lower data.options.window."
        ]

    def fingerprint(self, tasks: Iterable[str], splits: Iterable[str], *, dates: bool = False) -> str:
        """Returns the fingerprint that the files of a task had when the shards were written."""
        (task,) = tasks
        return str(self.index["fingerprints"][task])

    def about(self) -> list[str]:
        """Returns where the shards are and how large those of all tasks are."""
        total = sum(self.size(split) for split in self.index["splits"]) * sum(
            row_bytes(self.index, part) for part in self.index["arrays"]
        )
        return [f"shards of {self.data.shard_size} samples at {self.remote.url}, {total / 1e9:,.3g} GB in all"]


class _Ids(Sequence[str]):
    """The ids of a split, read with their shards."""

    def __init__(self, files: ShardedFiles, split: str):
        self.files, self.split = files, split

    def __len__(self) -> int:
        return self.files.size(self.split)

    def __getitem__(self, index: Any) -> Any:
        shard, row = self.files.layout(self.split).place(index)
        return self.files.described(self.split, shard)["ids"][row]


class Shards:
    """The samples of one split, fetched when asked for; stands in for the decode cache.

    Args:
        files: The shards of all splits.
        split: The split.
        tasks: Tasks whose labels are read.
    """

    def __init__(self, files: ShardedFiles, split: str, tasks: Sequence[str]):
        place = folder_of_caches()
        if place is None:
            raise DataError("\n".join(files.missing(tasks, ())))
        self.files, self.index, self.split, self.tasks = files, files.index, split, list(tasks)
        self.layout = files.layout(split)
        self.space = Space(place / "shards", int(files.data.space * 2**30))
        self._thread: threading.Thread | None = None
        self._asked: set[int] = set()
        self._latest = -1

    def __len__(self) -> int:
        return self.layout.size

    def __getitem__(self, index: int) -> Decoded:
        shard, row = self.layout.place(index)
        if not self.layout.spread and shard != self._latest:  # read in order, as evaluations do
            self._latest = shard
            self._fetch_ahead([shard + 1] if shard + 1 < self.layout.count else [])
        about = self.files.described(self.split, shard)
        labels = {task: self._row(shard, f"label-{task}", row) for task in self.tasks if about["has"][task][row]}
        frame, aspect = about["frames"][row], about["aspects"][row]
        return Decoded(self._row(shard, "image", row), labels, tuple(frame), aspect)

    def prefetch(self, indices: Sequence[int] | NDArray[np.int64]) -> None:
        """Fetches the shards of samples that are read next, without waiting for them."""
        shards = (self.layout.place(int(index))[0] for index in indices)
        self._fetch_ahead(list(dict.fromkeys(shards)))

    def _fetch_ahead(self, shards: list[int]) -> None:
        new = [shard for shard in shards if shard not in self._asked]
        if new and not (self._thread and self._thread.is_alive()):
            self._asked = set(shards)
            self._thread = threading.Thread(target=self._fill, args=(new,), daemon=True)
            self._thread.start()

    def _fill(self, shards: list[int]) -> None:
        try:
            for shard in shards:
                for part in parts_of(self.index, self.tasks):
                    if part in self.files.described(self.split, shard)["files"]:
                        self.space.fill(*self._file(shard, part))
        except MtlbenchError:
            return  # Reading the sample meets the same fault, and reports it.

    def _file(self, shard: int, part: str) -> tuple[str, int, Callable[[], bytes]]:
        """Returns local name, bytes and content of an array, as `Space` takes them."""
        size, sha256 = self.files.described(self.split, shard)["files"][part]
        name = f"{folder_of(self.split, shard)}/{part}.npy"
        return f"{self.index['key']}-{name.replace('/', '-')}", size, lambda: self.files.remote.read(name, sha256)

    def _row(self, shard: int, part: str, row: int) -> NDArray[Any]:
        """Returns one row of an array."""
        dtype, shape = self.index["arrays"][part]
        found = np.empty(shape, dtype)
        file = self._file(shard, part)
        header = file[1] - found.nbytes * len(self.layout.members(shard))
        self.space.read(*file, header + row * found.nbytes, found.data.cast("B"))
        return found


def parts_of(index: Mapping[str, Any], tasks: Iterable[str]) -> list[str]:
    """Returns the arrays of a shard that a run on some tasks reads."""
    return ["image", *(f"label-{task}" for task in tasks if f"label-{task}" in index["arrays"])]


def row_bytes(index: Mapping[str, Any], part: str) -> int:
    """Returns the bytes of a sample in an array."""
    dtype, shape = index["arrays"][part]
    return int(np.dtype(dtype).itemsize * prod(shape))
