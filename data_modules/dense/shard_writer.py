"""Writes the samples of a data set as shards; see `data_modules.dense.shards`. What is written already is kept."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlbench.data.remote import Remote, checksum
from mtlbench.data.windows import Layout
from mtlbench.errors import DataError

from .cache import Decoded
from .shards import ABOUT, FORMAT, INDEX, content_of, folder_of

if TYPE_CHECKING:
    from .module import DenseData


def write_shards(data: DenseData, url: str, watch: Callable[[str, int, int], None]) -> int:
    """Writes the shards that are missing below a URL, then their index; see `MTLDataModule.shard`.

    The index comes last, so that an incomplete set is never read.
    """
    tasks = data.readable()
    if absent := data.files.missing(tasks, data.SPLITS):
        raise DataError("\n".join(absent))
    content = {
        **content_of(data),
        "format": FORMAT,
        "samples": data.shard_size,
        "fingerprints": {task: data.files.fingerprint([task], data.SPLITS) for task in tasks},
    }
    key = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()
    writer = _Writer(data, Remote(url), key)
    splits = {split: writer.split(split, watch) for split in data.SPLITS}
    writer.remote.write(INDEX, json.dumps({**content, "splits": splits, "arrays": writer.arrays}).encode())
    return writer.written


class _Writer:
    """Writes splits, and collects the form of the arrays, which all shards share."""

    def __init__(self, data: DenseData, remote: Remote, key: str):
        self.data, self.remote, self.key = data, remote, key
        self.arrays: dict[str, tuple[str, list[int]]] = {}
        self.written = 0

    def split(self, split: str, watch: Callable[[str, int, int], None]) -> dict[str, Any]:
        """Writes one split and returns its part of the index."""
        ids, originals = self.data.files.ids(split), self.data.originals(split).stored
        layout = Layout(len(ids), self.data.shard_size, spread=split == "train")
        sums = []
        for shard in range(layout.count):
            folder = folder_of(split, shard)
            about = self._there(folder)
            if about is None:
                members = layout.members(shard)
                about = self._written(folder, [ids[i] for i in members], [originals[i] for i in members])
            self._share(json.loads(about)["arrays"], folder)
            sums.append(checksum(about))
            watch(split, shard + 1, layout.count)
        return {"samples": layout.size, "shards": sums}

    def _there(self, folder: str) -> bytes | None:
        """Returns the description of a shard that an earlier call has finished, which was written after its arrays."""
        name = f"{folder}/{ABOUT}"
        if not self.remote.exists(name):
            return None
        content = self.remote.read(name)
        try:
            same = json.loads(content)["key"] == self.key
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise DataError(
                f"Shards never replace others. {self.remote.url}/{name} belongs to other data, options or tasks. "
                "Name another URL, or remove what lies there."
            )
        return content

    def _written(self, folder: str, ids: list[str], samples: list[Decoded]) -> bytes:
        """Writes one shard and returns its description."""
        tasks = self.data.readable()
        arrays = {"image": np.stack([sample.image for sample in samples])}
        for task in tasks:
            known = [sample.labels[task] for sample in samples if task in sample.labels]
            if known:
                blank = np.zeros_like(known[0])
                arrays[f"label-{task}"] = np.stack([sample.labels.get(task, blank) for sample in samples])
        files = {}
        for part, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            self.remote.write(f"{folder}/{part}.npy", buffer.getvalue())
            files[part] = [buffer.tell(), checksum(buffer.getvalue())]
        about = {
            "key": self.key,
            "ids": ids,
            "frames": [sample.frame for sample in samples],
            "aspects": [sample.aspect for sample in samples],
            "has": {task: [int(task in sample.labels) for sample in samples] for task in tasks},
            "arrays": {part: (array.dtype.str, list(array.shape[1:])) for part, array in arrays.items()},
            "files": files,
        }
        content = json.dumps(about).encode()
        self.remote.write(f"{folder}/{ABOUT}", content)
        self.written += 1
        return content

    def _share(self, arrays: dict[str, Any], folder: str) -> None:
        """Takes the form of a shard's arrays, which must be that of the others."""
        for part, (dtype, shape) in arrays.items():
            if self.arrays.setdefault(part, (dtype, shape)) != (dtype, shape):
                raise DataError(
                    f"Samples in shards have one form. {part} is {dtype} {shape} in {folder}, and {self.arrays[part]} "
                    "in others. Correct the data module."
                )
