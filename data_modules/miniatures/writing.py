"""What all miniatures share: they are written whole or not at all, and never replace other data."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from mtlbench.errors import DataError

from ..dense.formats.pascal_labels import VOC_COLOURS

MARK = "MINIATURE.json"
"""File that marks a miniature and says how it was made."""


@contextmanager
def whole(target: Path, recipe: dict[str, Any]) -> Iterator[Path | None]:
    """Gives a temporary folder that becomes ``target`` when all went well; None if the same lies there already.

    Raises:
        DataError: Something else lies there.
    """
    if target.exists():
        _check_same(target, recipe)
        yield None
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        (temporary / MARK).write_text(json.dumps(recipe, indent=1) + "\n")
        temporary.chmod(0o755)  # mkdtemp lets nobody else read
        try:
            temporary.rename(target)
        except OSError:  # another process was quicker
            _check_same(target, recipe)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_same(target: Path, recipe: dict[str, Any]) -> None:
    mark = target / MARK
    found = json.loads(mark.read_text()) if mark.is_file() else "no miniature"
    if found != recipe:
        raise DataError(
            f"A miniature never replaces other data. {target} exists and is {found}, wanted {recipe}. "
            "Remove it or give another root."
        )


def write_lists(folder: Path, ids: list[str], train: int) -> None:
    """Writes ``train.txt`` with the first ids and ``val.txt`` with the others."""
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("".join(f"{name}\n" for name in ids[:train]))
    (folder / "val.txt").write_text("".join(f"{name}\n" for name in ids[train:]))


def save(pixels: NDArray[Any] | Image.Image, path: Path, **options: Any) -> None:
    """Writes a picture; uint8 (H, W) and (H, W, 3) and uint16 (H, W) arrays keep their depth."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    picture.save(path, **options)


def save_npy(array: NDArray[Any], path: Path) -> None:
    """Writes an array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def save_mat(path: Path, content: dict[str, Any]) -> None:
    """Writes a MATLAB v5 file, the same bytes every time."""
    buffer = io.BytesIO()
    savemat(buffer, content, do_compression=True)
    # The format opens with 116 characters of free text, into which scipy writes the time.
    header = b"MATLAB 5.0 MAT-file, rendered by mtlbench".ljust(116)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + buffer.getvalue()[len(header) :])


def palette(labels: NDArray[np.uint8]) -> Image.Image:
    """Returns a palette image in VOC's colours."""
    picture = Image.fromarray(labels, mode="P")
    picture.putpalette(VOC_COLOURS.tobytes())
    return picture


def photo(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns (H, W, 3) of (3, H, W)."""
    return np.ascontiguousarray(image.transpose(1, 2, 0))
