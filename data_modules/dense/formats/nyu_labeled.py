"""`nyu_depth_v2_labeled.mat`, the form in which the authors of NYU Depth V2 distribute it, as ``NYUD_MT``.

The file is MATLAB's version 7.3. As h5py sees it, with the axes in reverse order, it holds ``images`` (N, 3, W, H)
uint8, ``depths`` (N, W, H) in metres, ``labels`` (N, W, H) with ids of the ``names`` (1, C), 0 = unlabelled. Beside it
lie ``splits.mat``, with the numbers of the training and test images, and, from later work (Gupta et al. 2013), the map
of the C names to 40 classes, ``classMapping40.mat``. Neither normals nor edges belong to the set.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtlbench.errors import DataError

from .. import decoding as read
from .. import matlab
from ..decoding import Array, Bytes

NAME = "NYUD_MT"
SPLITS = {"train": "trainNdxs", "val": "testNdxs"}
"""Split of the layout -> variable of ``splits.mat``; images are numbered from 1."""

CLASSES = 40
TOGETHER = 32
"""Images that are read at once: the file's chunks hold parts of many."""


def write_nyud_mt(source: Path, folder: Path, watch: Callable[[int, int], None]) -> Path:
    """Writes ``NYUD_MT`` with photographs, depth and, if the map of classes is there, segmentation.

    Args:
        source: ``nyu_depth_v2_labeled.mat``; `splits.mat` and perhaps `classMapping40.mat` lie beside it.
        folder: Where ``NYUD_MT`` is put; made if absent.
        watch: Called with the number of images written so far and in all.

    Returns:
        The new folder. It is there as a whole or not at all.

    Raises:
        DataError: A file is absent, damaged or of another form, h5py is not installed, or the folder exists.
    """
    target = folder / NAME
    if target.exists():
        raise DataError(
            f"A conversion never replaces data. {target} exists. Remove it or choose another folder (--data)."
        )
    if not source.is_file() or not matlab.is_hdf5(source):
        found = "a file of another kind" if source.is_file() else "no file"
        raise DataError(
            f"{source}: what is converted is nyu_depth_v2_labeled.mat, a MATLAB file of version 7.3. Found {found}. "
            "Get it from horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat."
        )
    folder.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=folder))
    try:
        with read.reading(source, lambda: matlab.hdf5(source)) as file:
            _write(source, file, draft, watch)
        draft.chmod(0o755)  # mkdtemp lets nobody else read
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _write(source: Path, file: Any, target: Path, watch: Callable[[int, int], None]) -> None:
    arrays = [_stored(source, file, key) for key in ("images", "depths", "labels")]
    count = _check_shapes(source, *arrays)
    names = _stored(source, file, "names")
    classes = _class_map(
        source.with_name("classMapping40.mat"), read.reading(source, lambda: matlab.texts(names, file))
    )
    (target / "gt_sets").mkdir()
    for split, key in SPLITS.items():
        numbers = _numbers(source.with_name("splits.mat"), key, count)
        (target / "gt_sets" / f"{split}.txt").write_text("".join(f"{number:04d}\n" for number in numbers))
    for kind in ("images", "depth", *(["segmentation"] if classes is not None else [])):
        (target / kind).mkdir()
    for start in range(0, count, TOGETHER):
        some = read.reading(source, partial(_slices, arrays, slice(start, start + TOGETHER)))
        for number, (image, depth, label) in enumerate(zip(*some, strict=True), start + 1):
            name = f"{number:04d}"
            Image.fromarray(np.ascontiguousarray(image.T)).save(target / "images" / f"{name}.png")
            np.save(target / "depth" / f"{name}.npy", np.ascontiguousarray(depth.T, np.float32))
            if classes is not None:
                forty = _forty(source, number, label.T, classes)
                Image.fromarray(forty).save(target / "segmentation" / f"{name}.png")
            watch(number, count)


def _slices(arrays: list[Any], some: slice) -> list[Array]:
    return [array[some] for array in arrays]


def _stored(source: Path, file: Any, key: str) -> Any:
    if key not in file:
        names = ", ".join(name for name in file if not name.startswith("#"))
        raise read.fault(source, f"the file holds the variable {key}", names or "no variable")
    return file[key]


def _check_shapes(source: Path, images: Any, depths: Any, labels: Any) -> int:
    """Returns the number of images of arrays whose axes MATLAB has written in reverse order."""
    good = len(images.shape) == 4 and images.shape[1] == 3 and images.dtype == np.uint8
    same = depths.shape == labels.shape == (images.shape[0], *images.shape[2:])
    if not (good and same and depths.dtype.kind == "f" and labels.dtype.kind in "iu"):
        found = ", ".join(f"{name} {v.dtype} {v.shape}" for name, v in (("images", images), ("depths", depths)))
        rule = "images are uint8 (N, 3, W, H), depths floats and labels whole numbers (N, W, H), as MATLAB writes them"
        raise read.fault(source, rule, f"{found}, labels {labels.dtype} {labels.shape}")
    return int(images.shape[0])


def _numbers(path: Path, key: str, count: int) -> list[int]:
    """Returns the images of a split, numbered from 1."""
    if not path.is_file():
        raise DataError(
            f"The official split lies beside the images. Looked for {path}. Get it from "
            "horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat."
        )
    found = read.matrix(path, key).ravel()
    read.check_values(path, f"images are numbered 1..{count}", found, (found >= 1) & (found <= count))
    return [int(number) for number in found]


def _class_map(path: Path, names: list[str]) -> Bytes | None:
    """Returns the class 0..40 of every label 0..C, 0 = unlabelled; None without the file of the map."""
    if not path.is_file():
        return None
    found = read.matrix(path, "mapClass").ravel()
    if len(found) != len(names):
        raise read.fault(path, f"the map has a class for each of the {len(names)} names", f"{len(found)}")
    fine = (found >= 0) & (found <= CLASSES) & (found == np.floor(found))
    read.check_values(path, f"classes are whole numbers 0..{CLASSES}", found, fine)
    return np.concatenate([[0], found]).astype(np.uint8)


def _forty(source: Path, number: int, label: Array, classes: NDArray[np.uint8]) -> Bytes:
    rule = f"the labels of image {number} are 0..{len(classes) - 1}"
    read.check_values(source, rule, label, (label >= 0) & (label < len(classes)))
    return np.ascontiguousarray(classes[label])
