"""Variables of MATLAB files: version 5 through scipy, version 7.3, which is HDF5, through h5py.

HDF5 files hold MATLAB's arrays with the axes in reverse order, texts as numbers, and cells and structs as references.
All of that is undone here: a variable has the form that `scipy.io.loadmat` gives it, whichever version the file has.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from mtlbench.errors import DataError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""How HDF5 begins. MATLAB puts 512 bytes of its own before it."""


def variable(path: Path, key: str) -> tuple[Any, list[str]]:
    """Returns a variable, None if the file has none of that name, and the names of all its variables.

    Args:
        path: A file of version 5 or 7.3.
        key: Name of the variable.

    Raises:
        DataError: The file has version 7.3 and h5py is not installed.
    """
    if not is_hdf5(path):
        content = loadmat(path)
        return content.get(key), [name for name in content if not name.startswith("__")]
    with hdf5(path) as file:
        names = [name for name in file if not name.startswith("#")]
        return (_value(file[key], file) if key in names else None), names


def is_hdf5(path: Path) -> bool:
    """Returns whether a file is HDF5, which MATLAB calls version 7.3."""
    with path.open("rb") as file:
        start = file.read(512 + len(SIGNATURE))
    return SIGNATURE in (start[: len(SIGNATURE)], start[512:])


def hdf5(path: Path) -> Any:
    """Opens an HDF5 file for reading.

    Raises:
        DataError: h5py is not installed.
        OSError: The file is damaged.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            f"{path}: MATLAB files of version 7.3 are HDF5, which h5py reads. It is not installed. Run `pip install "
            '"mtlbench[hdf5]"` (or `pip install h5py`), or save the file with -v7 in MATLAB.'
        ) from error
    return h5py.File(path, "r")


def texts(cells: Any, file: Any) -> list[str]:
    """Returns the texts of a cell array of an open HDF5 file, such as the names of classes or scenes."""
    return [str(np.ravel(cell)[0]) if np.size(cell) else "" for cell in np.ravel(_value(cells, file))]


def _value(item: Any, file: Any) -> NDArray[Any]:
    """Returns a data set or group in the form that scipy gives it."""
    if hasattr(item, "keys"):
        return _struct({name: item[name] for name in item}, file)
    kind = item.attrs.get("MATLAB_class", b"")
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    if item.attrs.get("MATLAB_empty"):  # the data set then holds the extents
        return np.zeros(tuple(int(n) for n in np.ravel(item[()])))
    stored = np.asarray(item[()])
    if stored.dtype == object:
        return _each(stored.T, lambda reference: _value(file[reference], file))
    if kind == "char":
        return np.array(["".join(chr(code) for code in row) for row in np.atleast_2d(stored.T)])
    return stored.T


def _struct(fields: dict[str, Any], file: Any) -> NDArray[Any]:
    """Returns a struct, or an array of structs, whose fields are arrays of references without a class of their own."""
    several = all("MATLAB_class" not in field.attrs for field in fields.values())
    values = {name: _value(field, file) for name, field in fields.items()}
    columns = values if several else {name: _boxed(value) for name, value in values.items()}
    made = np.empty(next((column.shape for column in columns.values()), (0, 0)), [(name, object) for name in columns])
    for name, column in columns.items():
        made[name] = column
    return made


def _boxed(value: Any) -> NDArray[Any]:
    """Returns an array of one object."""
    made = np.empty((1, 1), object)
    made[0, 0] = value
    return made


def _each(cells: NDArray[Any], change: Callable[[Any], Any]) -> NDArray[Any]:
    """Returns an array of objects: what ``change`` makes of every cell."""
    made = np.empty(cells.shape, object)
    for place in np.ndindex(cells.shape):
        made[place] = change(cells[place])
    return made
