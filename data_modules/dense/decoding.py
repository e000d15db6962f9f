"""Readers of single files of a data set; an error states the file, the rule, what was found and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtlbench.errors import DataError
from mtlbench.visualise import rgb

from . import matlab

Bytes = NDArray[np.uint8]
Array = NDArray[Any]
Size = tuple[int, int]
"""Height and width in pixels."""
T = TypeVar("T")

GREY16 = ("I;16", "I;16B", "I;16L", "I")
"""Pillow's modes of a 16-bit grey picture."""

WHOLE = ("L", "P", "1", *GREY16)
"""Pillow's modes of a picture with one whole number per pixel."""

ORIENTATION = 0x0112
"""EXIF's number of the orientation of a camera; 1 is upright."""

HALF = float(np.finfo(np.float16).max)
"""The largest number that half precision holds."""

MAX_METRES = 100.0
"""Depth of a room or a street stays below; millimetres do not."""


def fault(path: Path, rule: str, fact: str) -> DataError:
    """Returns the error for a file that breaks a rule."""
    return DataError(f"{path}: {rule}. Found {fact}. Unpack the archive again, or take the id off its list.")


def ending(path: Path) -> str:
    """Returns the ending of a file in small letters: ``".npy"`` of ``0001.NPY`` too."""
    return path.suffix.lower()


def reading(path: Path, read: Callable[[], T]) -> T:
    """Returns what ``read`` returns; whatever a decoder raises on a damaged file becomes a `DataError`."""
    try:
        return read()
    except DataError:
        raise
    except Exception as error:  # decoders of damaged files raise anything from struct.error to IndexError
        size = f"{path.stat().st_size} bytes" if path.is_file() else "a folder" if path.is_dir() else "the file is gone"
        raise fault(path, "files must be complete and readable", f"{type(error).__name__}: {error} ({size})") from error


def photo(path: Path) -> Bytes:
    """Returns a photograph: RGB uint8 (H, W, 3)."""

    def read() -> Bytes:
        with Image.open(path) as picture:
            return rgb(picture)

    return reading(path, read)


def orientation(path: Path) -> int:
    """Returns the EXIF orientation of a photograph, 1..8; 1 = upright, also where none can be read."""
    try:
        with Image.open(path) as picture:
            found = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # what cannot be read is a fault of its own, which `photo` names
        return 1
    return found if found in range(1, 9) else 1


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
        rule = f"this label is a picture of mode {' or '.join(modes)}{hint}"
        if modes == WHOLE:
            rule = "this label holds one whole number per pixel, as do pictures of mode L or P"
        raise fault(path, rule, f"mode {mode}")
    check_size(path, found, size)
    return found


def grey16(path: Path, size: Size | None) -> NDArray[np.uint16]:
    """Returns a 16-bit label, (H, W)."""
    found = png(path, GREY16, size)
    check_values(path, "values have 16 bits, 0..65535", found, (found >= 0) & (found <= 65535))
    return found.astype(np.uint16)


def npy(path: Path) -> Array:
    """Returns a NumPy array of numbers; pickled objects and strings are refused."""
    return numbers(path, reading(path, lambda: np.load(path, allow_pickle=False)))


def numbers(path: Path, found: Array) -> Array:
    """Returns an array if it holds numbers; pickled objects, texts and complex numbers are refused."""
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        what = getattr(found, "dtype", type(found).__name__)
        raise fault(path, "the file holds one array of numbers", f"{what}")
    return found


def mat(path: Path, key: str) -> Array:
    """Returns one variable of a MATLAB file, of version 5 or 7.3.

    Raises:
        DataError: The file is damaged or has no such variable, or has version 7.3 and h5py is not installed.
    """
    found, names = reading(path, lambda: matlab.variable(path, key))
    if found is None:
        raise fault(path, f"the file holds the variable {key}", ", ".join(names) or "no variable")
    return np.asarray(found)


def matrix(path: Path, key: str) -> Array:
    """Returns one variable of a MATLAB file, which must hold numbers."""
    return numbers(path, mat(path, key))


def plane(path: Path, found: Array, size: Size) -> Array:
    """Returns a label of one value per pixel, (H, W). Axes of length 1 do not count.

    Raises:
        DataError: The array has further axes, or another size than the photograph.
    """
    if found.ndim != 2:
        extents = tuple(n for n in found.shape if n != 1)
        if extents == tuple(n for n in size if n != 1):
            return found.reshape(size)
        if len(extents) != 2:
            raise fault(path, "this label has the shape (height, width)", f"{found.shape}")
        found = found.reshape(extents)
    check_size(path, found, size)
    return found


def depth(path: Path, found: Array, size: Size) -> NDArray[np.float32]:
    """Returns depth in metres, (H, W), 0 = no measurement.

    Raises:
        DataError: A value is not finite, negative, or too large for metres.
    """
    metres = plane(path, numbers(path, found), size)
    check_values(path, "depth is finite, with 0 for no measurement", metres, np.isfinite(metres))
    rule = f"depth is given in metres, 0..{MAX_METRES:g}"
    check_values(path, rule, metres, (metres >= 0) & (metres <= MAX_METRES))
    return metres.astype(np.float32)


def normals(path: Path, size: Size) -> NDArray[np.float16]:
    """Returns the unit vectors of a NumPy file, 0 = none: (H, W, 3).

    Raises:
        DataError: The array has another shape, or its vectors have another length.
    """
    found = npy(path)
    if found.ndim != 3 or found.shape[2] != 3:
        raise fault(path, "normals have three components: the shape is (height, width, 3)", f"{found.shape}")
    check_size(path, found, size)
    check_unit(path, found)
    check_values(path, "normals are unit vectors", found, (found <= HALF) & (found >= -HALF))
    return found.astype(np.float16)


def check_unit(path: Path, vectors: Array) -> None:
    """Checks that normals, (H, W, 3), have length 1 where they have a direction at all.

    Raises:
        DataError: They are not finite, or half of them are off by more than a tenth.
    """
    check_values(path, "normals are finite, with 0 for no direction", vectors, np.isfinite(vectors))
    if vectors.ndim != 3 or vectors.shape[2] != 3:
        raise fault(path, "normals have the shape (height, width, 3)", f"{vectors.shape}")
    with np.errstate(over="ignore"):
        squares = (vectors.astype(np.float32) ** 2).sum(-1)
    lengths = squares[squares >= 0.25] ** 0.5
    middle = float(np.median(lengths[:: max(1, lengths.size // 10_000)])) if lengths.size else 1.0
    if not 0.9 <= middle <= 1.1:
        raise fault(path, "normals are unit vectors", f"a median length of {middle:.2f}")


def check_size(path: Path, found: Array, size: Size | None) -> None:
    """Checks that a label has the size of its photograph."""
    if size is not None and found.shape[:2] != tuple(size):
        turned = "; height and width are exchanged" if found.shape[:2] == tuple(size)[::-1] else ""
        fact = f"{found.shape[:2]}, the photograph {size} (h, w){turned}"
        raise fault(path, "a label has the size of its photograph", fact)


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
