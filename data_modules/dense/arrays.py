"""Arrays that are computed once, kept in the folder of caches and then read through memory maps."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from .cache import folder_of_caches


class Whole(Protocol):
    """A dataclass of arrays."""

    def whole(self) -> bool:
        """Returns whether the arrays belong together."""


Arrays = TypeVar("Arrays", bound=Whole)


def cached(name: str, kind: type[Arrays], make: Callable[[], Arrays]) -> Arrays:
    """Returns arrays from the cache, or makes them and puts them there.

    The cache lies where decoded images lie (``MTLBENCH_CACHE``). It is written beside its place and renamed, so that
    several writers cannot harm each other.

    Args:
        name: Name within the folder of caches, which depends on everything that decides the arrays.
        kind: The dataclass.
        make: Computes the arrays.
    """
    place = folder_of_caches()
    if place is None:
        return make()
    folder = place / name
    try:
        found = _read(folder, kind)
    except (OSError, ValueError):
        made = make()
    else:
        with contextlib.suppress(OSError):
            os.utime(folder)  # Caches that nobody uses are removed after a while.
        return found
    draft = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        for name in _names(kind):
            np.save(draft / f"{name}.npy", getattr(made, name))
        if folder.exists():  # It is damaged, or another process has just written it.
            shutil.rmtree(folder, ignore_errors=True)
        os.rename(draft, folder)
        return _read(folder, kind)
    except (OSError, ValueError):  # A disk without room or without right to write: the same arrays, only slower.
        return made
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _names(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]


def _read(folder: Path, kind: type[Arrays]) -> Arrays:
    found = kind(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _names(kind)})
    if not found.whole():
        raise ValueError(f"arrays of {folder} do not belong together")
    return found
