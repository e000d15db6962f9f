"""Damaged files and lists, drawn at random: each is read as meant or named, and no value outside its range passes.

``MTLBENCH_FUZZ`` is the number of inputs of each test, by default 500.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat, savemat

from mtlbench.data.verify import verify
from mtlbench.data_modules import miniatures
from mtlbench.data_modules.cityscapes import Cityscapes
from mtlbench.data_modules.dense.lists import read_list
from mtlbench.data_modules.nyud import Nyud
from mtlbench.data_modules.nyuv2 import NYUv2
from mtlbench.data_modules.pascal import Pascal
from mtlbench.data_modules.taskonomy import Taskonomy
from mtlbench.errors import DataError
from mtlbench.tasks import BinaryMap, Depth, Normals, SemanticSegmentation, Task
from mtlbench.tasks.taskonomy import SoftClassification

COUNT = int(os.environ.get("MTLBENCH_FUZZ", "300"))
fuzz = hypothesis.settings(
    max_examples=COUNT,
    deadline=None,
    derandomize="MTLBENCH_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


# ---- lists ----------------------------------------------------------------------------------------------------------

LINES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["0001", "0001 1", "b c", "b 0", "b -1", "# note", "", " 0002 ", "image 1", "image 2", "caf\xe9"]),
)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
CONTENTS = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda lines, end, encoding: end.join(lines).encode(encoding, "replace"),
        st.lists(LINES, max_size=8),
        st.sampled_from(["\n", "\r\n", "\r"]),
        ENCODINGS,
    ),
)


@fuzz
@hypothesis.given(content=CONTENTS)
def test_any_bytes_are_a_list_or_named(folder: Path, content: bytes) -> None:
    path = folder / "list.txt"
    path.write_bytes(content)
    try:
        ids = read_list(path)
    except DataError as error:
        hypothesis.event("named")
        assert str(path) in str(error)
    else:
        hypothesis.event("read")
        assert all(word and word == word.strip() and (word.isprintable() or not word.isascii()) for word in ids)


CELLS = st.sampled_from(["1", "0", "1.0", " 0 ", "", "1", "0", "0", "yes"])
ROWS = st.tuples(st.sampled_from(["a", "b c", "caf\xe9", ""]), CELLS, CELLS, CELLS).map(",".join)
HEAD = "id,train,val,test"
TABLES = st.one_of(
    CONTENTS,
    CONTENTS.map(lambda content: HEAD.encode() + b"\n" + content),
    st.builds(
        lambda rows, comma: "\r\n".join([HEAD, *rows]).replace(",", comma).encode(),
        st.lists(ROWS, max_size=2),
        st.sampled_from(",,;"),
    ),
)


@fuzz
@hypothesis.given(content=TABLES)
def test_any_bytes_are_a_table_of_buildings_or_named(folder: Path, content: bytes) -> None:
    (folder / "rgb").mkdir(exist_ok=True)
    path = folder / "train_val_test_tiny.csv"
    path.write_bytes(content)
    try:
        found = Taskonomy(str(folder)).files.listed()  # type: ignore[attr-defined]
    except DataError as error:
        hypothesis.event("named")
        assert str(path) in str(error)
    else:
        hypothesis.event("read")
        assert set(found) == {"train", "val", "test"} and all(all(names) for names in found.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lists")


# ---- files ----------------------------------------------------------------------------------------------------------


class Copy:
    """A pristine copy of one layout, with the files of its first training image and the name that they share."""

    def __init__(self, module: Any, root: Path):
        self.module, self.root = module, root
        data = module(str(root))
        image = data.files.ids("train")[0]
        kinds = ["image", *(kind for task in data.tasks for kind in data.files.NEEDS[task])]
        found = [data.files.find(kind, image) for kind in (*kinds, *(["mask"] if module is Taskonomy else []))]
        self.files = [data.files.base() / name for name in dict.fromkeys(found) if name]
        self.name = image.rpartition("/")[2]


def write(factory: pytest.TempPathFactory, module: Any, **options: Any) -> Copy:
    name = module.__name__.lower()
    return Copy(module, getattr(miniatures, f"write_{name}")(factory.mktemp(name), train=1, val=1, **options))


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> list[Copy]:
    return [
        *(write(tmp_path_factory, Nyud, layout=layout) for layout in ("vandenhende", "astmt", "invpt")),
        write(tmp_path_factory, NYUv2),
        write(tmp_path_factory, Pascal),
        write(tmp_path_factory, Taskonomy),
        *(write(tmp_path_factory, Cityscapes, layout=layout) for layout in ("official", "npy", "png")),
    ]


def damaged_bytes(draw: Any, content: bytes, path: Path) -> bytes:
    """Cuts off, empties, zeroes, exchanges or flips bytes; or puts another format under the name."""
    how = draw(st.sampled_from(["cut", "flip", "zeros", "empty", "swap", "noise", "other"]))
    place = draw(st.integers(0, max(0, len(content) - 1)))
    changed = bytearray(content)
    if how == "cut":
        return bytes(changed[:place])
    if how == "flip":
        for _ in range(draw(st.integers(1, 8))):
            changed[draw(st.integers(0, len(changed) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif how == "zeros":
        length = draw(st.integers(1, 64))
        changed[place : place + length] = bytes(min(length, len(changed) - place))
    elif how == "swap":
        return bytes(changed[place:] + changed[:place])
    elif how == "noise":
        return draw(st.binary(max_size=200))
    elif how == "other":
        return other_format(path.suffix)
    return bytes(changed) if how != "empty" else b""


def other_format(suffix: str) -> bytes:
    stream = io.BytesIO()
    if suffix == ".npy":
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(stream, "PNG")
    else:
        np.save(stream, np.zeros((4, 5)))
    return stream.getvalue()


DTYPES = st.sampled_from(["f2", "f4", "f8", ">f4", "u1", "i1", "i2", "u2", ">i4", "i8", "u8", "?", "c8", "U3", "M8[s]"])
VALUES = st.sampled_from([0, 1, -1, 2, 0.5, 254, 255, 256, 65535, 1e10, 1e38, 1e300, -1e300, np.nan, np.inf, -np.inf])
SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the same": lambda a: a,
    "an axis more": lambda a: a[None],
    "a last axis": lambda a: a[..., None],
    "three channels": lambda a: np.stack([a] * 3, -1) if a.ndim < 3 else a,
    "a row less": lambda a: a[1:],
    "turned": lambda a: a.swapaxes(0, 1) if a.ndim > 1 else a,
    "flat": lambda a: a.ravel(),
    "one number": lambda a: a.ravel()[:1].reshape(()),
    "nothing": lambda a: a[:0],
}


def damaged_array(draw: Any, array: np.ndarray) -> np.ndarray:
    """Writes values into an array, gives it another type and another shape."""
    changed = np.array(array, np.complex128 if array.dtype.kind == "c" else np.float64)
    for _ in range(draw(st.integers(0, 3))):
        flat = changed.reshape(-1)
        start = draw(st.integers(0, max(0, flat.size - 1)))
        flat[start : start + draw(st.sampled_from([1, 50, 10**6]))] = draw(VALUES)
    dtype = draw(st.one_of(st.just(array.dtype.str), DTYPES))
    with np.errstate(all="ignore"):
        if draw(st.booleans()):
            changed = changed * draw(VALUES) if draw(st.booleans()) else changed + draw(VALUES)
        return SHAPES[draw(st.sampled_from(sorted(SHAPES)))](changed.astype(dtype))


def damaged_picture(draw: Any, picture: Image.Image) -> Image.Image:
    """Gives a picture other values, another mode or another size."""
    array = np.array(picture)
    if draw(st.booleans()) and array.dtype != bool:
        top = np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1
        flat = array.reshape(-1)
        start = draw(st.integers(0, flat.size - 1))
        flat[start : start + draw(st.sampled_from([1, 50, 10**6]))] = draw(st.integers(0, min(int(top), 65535)))
    array = SHAPES[draw(st.sampled_from(["the same", "a row less", "turned"]))](array)
    made = Image.fromarray(np.ascontiguousarray(array))
    mode = draw(st.sampled_from(["", "L", "P", "1", "RGB", "RGBA", "LA", "I;16", "F", "CMYK"]))
    if mode == "I;16":
        return Image.fromarray(np.array(made.convert("L")).astype(np.uint16) * 257)
    return made.convert("L").convert(mode) if mode else made


def damage(draw: Any, path: Path) -> None:
    """Replaces a file by a damaged one under the same name."""
    ending, how = path.suffix, draw(st.sampled_from(["bytes", "content", "gone", "folder"] + ["content"] * 4))
    if how == "gone":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "bytes":
        path.write_bytes(damaged_bytes(draw, path.read_bytes(), path))
    elif ending == ".npy":
        np.save(path, damaged_array(draw, np.load(path)))
    elif ending == ".mat":
        variables = {key: value for key, value in loadmat(path).items() if not key.startswith("__")}
        key, value = next(iter(variables.items()))
        plain = np.ones((4, 5)) if value.dtype.kind not in "biuf" else value
        array = damaged_array(draw, plain)
        array = np.array(array, np.int64 if array.dtype.kind == "M" else array.dtype, order="C")  # MATLAB has no dates
        savemat(path, {draw(st.sampled_from([key, key, "other"])): array})
    else:
        with Image.open(path) as picture:
            picture.load()
        made = damaged_picture(draw, picture)
        kinds = ["PNG", "TIFF"] if made.mode in ("I;16", "F", "P", "1", "LA", "RGBA") else ["PNG", "TIFF", "JPEG"]
        kinds = [kind for kind in kinds if (made.mode, kind) not in {("F", "PNG"), ("CMYK", "PNG")}]
        made.save(path, draw(st.sampled_from(kinds)))


def range_fault(task: Task, target: torch.Tensor) -> str | None:
    """Says which rule a target breaks, written independently of the tasks' own check."""
    values = target.numpy().astype(np.float64)
    if isinstance(task, SemanticSegmentation):
        fine = np.isin(values, [*range(task.classes), 255])
    elif isinstance(task, BinaryMap):
        fine = np.isin(values, [0, 1, 255])
    elif isinstance(task, Normals):
        fine = (np.abs(np.linalg.norm(values, axis=0) - 1) < 0.02) | (values == 255).all(0)
    elif isinstance(task, SoftClassification):
        fine = np.array((values >= 0).all() and abs(values.sum() - 1) < 1e-3)
    elif type(task) is Depth:
        fine = (values > 0) & (values <= 100) | (values == 255)
    elif isinstance(task, Depth):
        fine = (values > 0) & np.isfinite(values)
    else:
        fine = np.isfinite(values)
    return None if fine.all() else f"{task.name}: {np.unique(values[~np.broadcast_to(fine, values.shape)])[:4]}"


@fuzz
@hypothesis.given(data=st.data())
def test_any_damaged_file_is_named_or_its_values_are_in_range(copies: list[Copy], data: Any) -> None:
    copy = copies[data.draw(st.integers(0, len(copies) - 1))]
    path = copy.files[data.draw(st.integers(0, len(copy.files) - 1))]
    content = path.read_bytes()
    try:
        damage(data.draw, path)
        module = copy.module(str(copy.root), size=[24, 32])
        absent = module.missing()
        if absent:  # the only image of the split is gone, or the file is
            hypothesis.event("absent")
            assert str(copy.root) in absent[0] and not path.exists()
            return
        found = verify(module, "train")
        hypothesis.event("named" if found.faults else "read")
        for fault in found.faults:
            assert copy.name in fault and "must be readable" not in fault, fault
        if not found.faults:
            sample = module.originals("train")[0]
            assert sample["image"].dtype == torch.uint8 and sample["image"].ndim == 3
            assert [range_fault(module.tasks[name], t) for name, t in sample["targets"].items()] == [None] * len(
                sample["targets"]
            )
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(content)
