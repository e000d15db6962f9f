"""Readers of single files of a data set; an error states the file, the rule, what was found and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat

from mtlbench.errors import DataError
from mtlbench.visualise import rgb

Bytes = NDArray[np.uint8]
Array = NDArray[Any]
Size = tuple[int, int]
"""Height and width in pixels."""
T = TypeVar("T")

GREY16 = ("I;16", "I;16B", "I;16L", "I")
"""Pillow's modes of a 16-bit grey picture."""

MAX_METRES = 100.0
"""Depth of a room or a street stays below; millimetres do not."""


def fault(path: Path, rule: str, fact: str) -> DataError:
    """Returns the error for a file that breaks a rule."""
    return DataError(f"{path}: {rule}. Found {fact}. Unpack the archive again, or take the id off its list.")


def reading(path: Path, read: Callable[[], T]) -> T:
    """Returns what ``read`` returns; whatever a decoder raises on a damaged file becomes a `DataError`."""
    try:
        return read()
    except DataError:
        raise
    except Exception as error:  # decoders of damaged files raise anything from struct.error to IndexError
        size = f"{path.stat().st_size} bytes" if path.is_file() else "the file is gone"
        raise fault(path, "files must be complete and readable", f"{type(error).__name__}: {error} ({size})") from error


def photo(path: Path) -> Bytes:
    """Returns a photograph: RGB uint8 (H, W, 3)."""

    def read() -> Bytes:
        with Image.open(path) as picture:
            return rgb(picture)

    return reading(path, read)


def png(path: Path, modes: tuple[str, ...], size: Size | None) -> Array:
    """Returns a label picture (H, W) or (H, W, 3) as it is stored; palette pictures give their indices.

    Args:
        path: The file; any format that Pillow reads.
        modes: Pillow's modes that this label may have.
        size: Height and width of the photograph; None does not ask.

    Raises:
        DataError: The file is damaged, or of another mode or size.
    """

    def read() -> tuple[str, Array]:
        with Image.open(path) as picture:
            return picture.mode, np.array(picture)

    mode, found = reading(path, read)
    if mode not in modes:
        hint = " (16 bits read as 8 lose the lower half)" if modes == GREY16 else ""
        raise fault(path, f"this label is a picture of mode {' or '.join(modes)}{hint}", f"mode {mode}")
    check_size(path, found, size)
    return found


def grey16(path: Path, size: Size | None) -> NDArray[np.uint16]:
    """Returns a 16-bit label, (H, W)."""
    found = png(path, GREY16, size)
    check_values(path, "values have 16 bits, 0..65535", found, (found >= 0) & (found <= 65535))
    return found.astype(np.uint16)


def npy(path: Path) -> Array:
    """Returns a NumPy array of numbers; pickled objects and strings are refused."""
    return _numbers(path, reading(path, lambda: np.load(path, allow_pickle=False)))


def _numbers(path: Path, found: Array) -> Array:
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        what = getattr(found, "dtype", type(found).__name__)
        raise fault(path, "the file holds one array of numbers", f"{what}")
    return found


def mat(path: Path, key: str) -> Array:
    """Returns one variable of a MATLAB v5 file.

    Raises:
        DataError: The file is damaged or has no such variable.
    """
    content = reading(path, lambda: loadmat(path))
    if key not in content:
        names = ", ".join(name for name in content if not name.startswith("__")) or "no variable"
        raise fault(path, f"the file holds the variable {key}", names)
    return np.asarray(content[key])


def depth(path: Path, found: Array, size: Size | None) -> NDArray[np.float32]:
    """Returns depth in metres, (H, W), 0 = no measurement.

    Raises:
        DataError: A value is not finite, negative, or too large for metres.
    """
    metres = np.squeeze(_numbers(path, found))
    if metres.ndim != 2:
        raise fault(path, "depth has the shape (height, width)", f"{found.shape}")
    check_size(path, metres, size)
    check_values(path, "depth is finite, with 0 for no measurement", metres, np.isfinite(metres))
    rule = f"depth is given in metres, 0..{MAX_METRES:g}"
    check_values(path, rule, metres, (metres >= 0) & (metres <= MAX_METRES))
    return metres.astype(np.float32)


def check_unit(path: Path, vectors: Array) -> None:
    """Checks that normals, (H, W, 3), have length 1 where they have a direction at all.

    Raises:
        DataError: They are not finite, or half of them are off by more than a tenth.
    """
    check_values(path, "normals are finite, with 0 for no direction", vectors, np.isfinite(vectors))
    if vectors.ndim != 3 or vectors.shape[2] != 3:
        raise fault(path, "normals have the shape (height, width, 3)", f"{vectors.shape}")
    squares = (vectors.astype(np.float32) ** 2).sum(-1)
    lengths = squares[squares >= 0.25] ** 0.5
    middle = float(np.median(lengths[:: max(1, lengths.size // 10_000)])) if lengths.size else 1.0
    if not 0.9 <= middle <= 1.1:
        raise fault(path, "normals are unit vectors", f"a median length of {middle:.2f}")


def check_size(path: Path, found: Array, size: Size | None) -> None:
    """Checks that a label has the size of its photograph."""
    if size is not None and found.shape[:2] != tuple(size):
        raise fault(path, "a label has the size of its photograph", f"{found.shape[:2]}, the photograph {size} (h, w)")


def check_values(path: Path, rule: str, found: Array, fine: NDArray[np.bool_]) -> None:
    """Checks that every value is fine; the error shows some that are not."""
    if not fine.all():
        raise fault(path, rule, f"{np.unique(found[~fine])[:5].tolist()}")


def mask(path: Path, found: Array) -> Bytes:
    """Returns 0 or 1 from a two-valued label, (H, W), whichever of 0/1 and 0/255 (or false/true) it is stored in.

    Values between belong to soft or compressed masks and are cut at half of the range.

    Raises:
        DataError: A value is outside 0..255, or not finite.
    """
    check_values(path, "a mask lies in 0..1 or 0..255", found, (found >= 0) & (found <= 255))
    highest = 1 if found.dtype == np.bool_ or found.max(initial=0) <= 1 else 255
    return (found > highest / 2).astype(np.uint8)


def check_thin(path: Path, edges: Bytes) -> None:
    """Checks that edges are lines and not what lies between them.

    Raises:
        DataError: More than half of the pixels are edges, so the values are exchanged.
    """
    share = float(edges.mean()) if edges.size else 0.0
    if share > 0.5:
        raise fault(path, "edges are 1 (or 255) on a background of 0", f"{share:.0%} edge pixels: the map is inverted")
