"""Decoded samples in memory-mapped arrays, so that a set is decoded once and not in every epoch of every run.

A cache is a folder of arrays, one row per sample, keyed by everything that decides its content: the source files
(names, sizes, dates), the size of the samples, the version of the data module. It is written beside its place and
renamed, so that two writers cannot harm each other, and a changed source gives another key. Without it the samples are
the same, only slower.

Caches that nobody has used for 30 days are removed when another one is opened.

``MTLBENCH_CACHE`` names the folder (default ``$XDG_CACHE_HOME/mtlbench`` or ``~/.cache/mtlbench``) or is ``off``;
``MTLBENCH_CACHE_GB`` is the largest size of one split (default 2).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_LOG = logging.getLogger(__name__)

SPARE = 0.9
"""Share of the free disk that a cache may take."""

UNUSED = 30 * 86400
"""Seconds without use after which a cache is removed."""

_OURS = re.compile(r"\.?[a-z0-9_]+-[a-z]+-[0-9a-f]{20}(-\w+)?")
"""Names of finished caches and of drafts; nothing else in the folder is ever removed."""


@dataclass(frozen=True)
class Decoded:
    """One image and its labels at the stored size, in few bytes.

    Attributes:
        image: uint8 (3, H, W), RGB.
        labels: Task -> (H, W) or (C, H, W) or, for whole-image labels, (C,); a missing label is absent.
        frame: Top, left, height and width of the photograph within the image.
        aspect: Height / width of the original photograph.
    """

    image: NDArray[np.uint8]
    labels: dict[str, NDArray[Any]]
    frame: tuple[int, int, int, int]
    aspect: float


class Stored(Protocol):
    """Decoded samples by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Decoded: ...


class Cached:
    """The samples of a finished cache, read through memory maps.

    Args:
        folder: Where the cache lies.

    Raises:
        OSError: It does not.
        ValueError: It is damaged.
    """

    def __init__(self, folder: Path):
        about = json.loads((folder / "about.json").read_text())
        self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in about["arrays"]}
        if {len(array) for array in self.arrays.values()} != {about["samples"]}:
            raise ValueError(f"arrays of {folder} differ in length")
        self.tasks = [name.removeprefix("has-") for name in self.arrays if name.startswith("has-")]

    def __len__(self) -> int:
        return len(self.arrays["image"])

    def __getitem__(self, index: int) -> Decoded:
        rows = self.arrays
        labels = {task: np.array(rows[f"label-{task}"][index]) for task in self.tasks if rows[f"has-{task}"][index]}
        top, left, height, width = (int(value) for value in rows["frame"][index])
        return Decoded(np.array(rows["image"][index]), labels, (top, left, height, width), float(rows["aspect"][index]))


def cached(name: str, key: Callable[[], str], samples: Stored) -> Stored:
    """Returns the samples from the cache, which is built if it is absent and fits; else ``samples`` themselves.

    Args:
        name: For people who look into the folder.
        key: Returns everything that decides the content; not asked if the cache would be too large anyway.
        samples: Decodes a sample when asked for it.
    """
    place = folder_of_caches()
    if place is None or not len(samples) or not _fits(samples):
        return samples
    folder = place / f"{name}-{hashlib.blake2b(key().encode(), digest_size=10).hexdigest()}"
    try:
        if not folder.is_dir():
            _build(folder, samples)
        found = Cached(folder)
        _prune(folder)
        return found
    except (OSError, ValueError) as error:  # ValueError: numpy on a damaged file
        _LOG.warning("Samples are decoded each time, since the cache %s cannot be used: %s", folder, error)
        return samples


def _prune(used: Path) -> None:
    """Marks a cache as used and removes finished ones and drafts that nobody has opened for `UNUSED` seconds.

    A process that still has a removed cache open keeps its maps; others decode again. Whatever cannot be removed stays.
    """
    os.utime(used)
    oldest = time.time() - UNUSED
    for folder in used.parent.iterdir():
        ours = _OURS.fullmatch(folder.name) and not folder.is_symlink() and folder.is_dir()
        with contextlib.suppress(OSError):
            if ours and folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)
                _LOG.info("Removed the cache %s: nobody has used it for %d days.", folder, UNUSED // 86400)


def folder_of_caches() -> Path | None:
    """Returns where caches lie, None if they are off."""
    chosen = os.environ.get("MTLBENCH_CACHE")
    if chosen == "off":
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen).expanduser() if chosen else base / "mtlbench" / "decoded"


def limit() -> int:
    """Returns the largest size of a cache in bytes."""
    return int(float(os.environ.get("MTLBENCH_CACHE_GB", "2")) * 2**30)


def _fits(samples: Stored) -> bool:
    """Returns whether a cache of these samples stays below the limit."""
    size = _size(samples)
    if size > limit():
        _LOG.info("No cache of decoded samples: it would take %.1f GB. See MTLBENCH_CACHE_GB.", size / 2**30)
    return size <= limit()


def _size(samples: Stored) -> int:
    first = samples[0]
    return sum(array.nbytes for array in (first.image, *first.labels.values())) * len(samples)


def _build(folder: Path, samples: Stored) -> None:
    """Writes a cache beside its place and renames it: other processes see all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if _size(samples) > SPARE * shutil.disk_usage(folder.parent).free:
        raise OSError(errno.ENOSPC, "the disk is too full")  # a write through a map would kill the process
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(draft, samples)
        draft.chmod(0o755)  # mkdtemp lets nobody else read
        try:
            draft.rename(folder)
        except OSError:  # another process was quicker
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(folder: Path, samples: Stored) -> None:
    count = len(samples)
    arrays: dict[str, NDArray[Any]] = {}

    def put(name: str, index: int, value: NDArray[Any]) -> None:
        if name not in arrays:
            path = folder / f"{name}.npy"
            arrays[name] = np.lib.format.open_memmap(path, "w+", value.dtype, (count, *value.shape))
        if arrays[name].dtype != value.dtype or arrays[name].shape[1:] != value.shape:
            raise ValueError(f"{name} of sample {index} is {value.dtype} {value.shape}, of others {arrays[name].dtype}")
        arrays[name][index] = value

    for index, sample in enumerate(_each(samples)):
        put("image", index, sample.image)
        put("frame", index, np.array(sample.frame, np.int32))
        put("aspect", index, np.array(sample.aspect))
        for task, label in sample.labels.items():
            put(f"label-{task}", index, label)
            put(f"has-{task}", index, np.array(True))
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]
    (folder / "about.json").write_text(json.dumps({"samples": count, "arrays": sorted(arrays)}))


def _each(samples: Stored) -> Iterator[Decoded]:
    return (samples[index] for index in range(len(samples)))
