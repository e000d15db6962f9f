"""Labels in any type that holds their values, and in no other; what is refused is named with file, rule and fact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mtlbench.data.verify import verify
from mtlbench.data_modules import cityscapes, nyud
from mtlbench.data_modules.dense import decoding, numbered_files
from mtlbench.data_modules.dense.formats import pascal_labels
from mtlbench.data_modules.miniatures import palette, write_nyud, write_pascal
from mtlbench.data_modules.nyud import Nyud
from mtlbench.data_modules.pascal import Pascal
from mtlbench.errors import DataError

SIZE = (2, 3)
MAP = np.array([[0, 1, 1], [1, 0, 1]])
SPARSE = np.array([[0, 1, 0], [1, 0, 0]])
TYPES = ["f2", "f4", "f8", ">f4", ">f8", "u1", "i1", "i2", ">u2", "i4", "<i8", ">i8", "u8", "?"]

READERS: dict[str, Any] = {
    "depth": nyud.depth,
    "edges": nyud.edges,
    "classes": lambda path, size: numbered_files.classes(path, 7, size),
    "inverse": cityscapes.npy_inverse,
}


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", READERS)
def test_maps_in_any_type_of_numbers(tmp_path: Path, kind: str, dtype: str) -> None:
    found = READERS[kind](saved(tmp_path / "a.npy", SPARSE.astype(dtype)), SIZE)
    assert np.array_equal(found, SPARSE) and found.dtype.isnative


@pytest.mark.parametrize("dtype", TYPES)
def test_vectors_in_any_type_of_numbers(tmp_path: Path, dtype: str) -> None:
    towards = np.broadcast_to(np.array([0, 0, 1], dtype), (*SIZE, 3))
    found = decoding.normals(saved(tmp_path / "n.npy", towards), SIZE)
    assert np.array_equal(found, towards) and found.dtype == np.float16


@pytest.mark.parametrize("shape", [(2, 3, 1), (1, 2, 3), (1, 2, 3, 1), (2, 1, 3)])
@pytest.mark.parametrize("kind", READERS)
def test_axes_of_length_one_do_not_count(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    assert np.array_equal(READERS[kind](saved(tmp_path / "a.npy", SPARSE.reshape(shape) * 1.0), SIZE), SPARSE)


def test_a_photograph_of_one_row_has_labels_of_one_row(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npy", np.array([[[0.0], [2.0]]]))
    assert nyud.depth(path, (1, 2)).tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ("array", "fact"),
    [
        (np.array([["a"] * 3] * 2), "numbers. Found <U1"),
        (SPARSE * 1j, "numbers. Found complex128"),
        (np.zeros(SIZE, "M8[s]"), r"numbers. Found datetime64"),
        (np.zeros(SIZE, [("x", "f4")]), "numbers. Found "),
        (np.zeros((2, 3, 3)), r"shape \(height, width\). Found \(2, 3, 3\)"),
        (np.zeros(6), r"shape \(height, width\). Found \(6,\)"),
        (np.zeros(()), r"shape \(height, width\). Found \(\)"),
        (np.zeros((3, 2)), r"size of its photograph. Found \(3, 2\).*exchanged"),
        (np.zeros((2, 4, 1)), r"size of its photograph. Found \(2, 4\)"),
        (np.full(SIZE, np.nan), r"Found \[nan\]"),
        (np.full(SIZE, -np.inf), r"Found \[-inf\]"),
        (np.full(SIZE, 1e300), r"Found \[(1e\+300|inf)\]"),
        (np.full(SIZE, -2), r"Found \[-2"),
    ],
)
@pytest.mark.parametrize("kind", READERS)
def test_what_is_no_map_is_named(tmp_path: Path, kind: str, array: np.ndarray, fact: str) -> None:
    with pytest.raises(DataError, match=f"a.npy: .*{fact}"):
        READERS[kind](saved(tmp_path / "a.npy", array), SIZE)


@pytest.mark.parametrize(
    ("array", "fact"),
    [
        (np.zeros((2, 3)), r"three components.*Found \(2, 3\)"),
        (np.zeros((3, 2, 3)), "size of its photograph.*exchanged"),
        (np.full((2, 3, 3), 1e30), "unit vectors"),
        (np.array([[[0, 0, 1]] * 2 + [[0, 0, 1e30]]] * 2), r"unit vectors. Found \[1e\+30\]"),
        (np.array([["a"]]), "numbers. Found <U1"),
    ],
)
def test_what_is_no_normals_is_named(tmp_path: Path, array: np.ndarray, fact: str) -> None:
    with pytest.raises(DataError, match=f"n.npy: .*{fact}"):
        decoding.normals(saved(tmp_path / "n.npy", array), SIZE)


def test_an_empty_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"i.npy: .*\(0, 0, 3\)"):
        numbered_files.image(saved(tmp_path / "i.npy", np.zeros((0, 0, 3))))


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "?"])
def test_class_pictures_of_any_depth(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "c.png" if dtype != "i4" else tmp_path / "c.tif"
    Image.fromarray(MAP.astype(dtype)).save(path)
    assert np.array_equal(nyud.semseg(path, SIZE), np.where(MAP == 0, 255, MAP - 1))
    for found in (pascal_labels.semseg(path, SIZE), cityscapes.png_classes(path, 7, SIZE)):
        assert np.array_equal(found, MAP) and found.dtype == np.uint8
    with pytest.raises(DataError, match=rf"{path.name}: .*Found \[(1|True)\]"):
        cityscapes.png_classes(path, 1, SIZE)


@pytest.mark.parametrize(
    ("array", "fact"),
    [
        (SPARSE + 0.5, r"\[0.5, 1.5\]"),
        (np.zeros((2, 3, 3)), r"\(2, 3, 3\)"),
        (np.array(["ab"]), "numbers. Found <U2"),
        (-SPARSE, r"\[-1"),
    ],
)
def test_matlab_maps_that_are_no_class_maps_are_named(tmp_path: Path, array: np.ndarray, fact: str) -> None:
    savemat(tmp_path / "m.mat", {"segmentation": array, "LabelMap": array})
    for read in (nyud.semseg, pascal_labels.context):
        with pytest.raises(DataError, match=f"m.mat: .*{fact}"):
            read(tmp_path / "m.mat", SIZE)


def test_saliency_of_one_bit(tmp_path: Path) -> None:
    Image.fromarray(MAP.astype(bool)).save(tmp_path / "s.png")
    assert np.array_equal(pascal_labels.saliency(tmp_path / "s.png", SIZE), MAP)


# ---- what can be read and yet is doubtful ---------------------------------------------------------------------------


def test_orientations_of_training_photographs_are_reported(tmp_path: Path) -> None:
    data = Nyud(str(write_nyud(tmp_path, train=3, val=1)), size=[24, 32])
    assert data.doubts("train") == []
    exif = Image.Exif()
    exif[0x0112] = 6
    for image in data.files.ids("train")[1:]:
        path = data.files.path("image", image)
        Image.open(path).save(path, exif=exif, quality=95)
    (doubt,) = [line for line in verify(data, "train").doubts if line.startswith("image:")]
    assert "2 files, for example images/0002.jpg, carry an EXIF orientation, which is not applied" in doubt
    before = data.originals("train")[1]["image"]
    assert before.shape == (3, 24, 32), "the pixels are taken as they are stored, like the labels"
    assert data.doubts("val") == []
    exif[0x0112] = 77  # no orientation
    Image.open(path).save(path, exif=exif, quality=95)
    assert "images/0002.jpg carries" in data.doubts("train")[0]


def test_palettes_of_other_programs_are_reported(tmp_path: Path) -> None:
    root = write_pascal(tmp_path, train=2, val=1)
    data = Pascal(str(root), size=32)
    assert data.doubts("train") == []
    path = data.files.path("semseg", data.files.ids("train")[0])
    stored = np.array(Image.open(path))
    sorted_anew = Image.open(path).convert("RGB").quantize(32)
    sorted_anew.save(path)
    assert not np.array_equal(np.array(Image.open(path)), stored)
    (doubt,) = data.doubts("train")
    assert path.name in doubt and "a palette other than VOC's" in doubt
    Image.fromarray(stored).save(path)
    assert data.doubts("train") == [], "a grey picture has no palette"
    palette(stored).save(path)
    assert data.doubts("train") == []
    tasks = {"saliency": Pascal.TASKS["saliency"]}
    sorted_anew.save(path)
    assert Pascal(str(root), size=32, tasks=tasks).doubts("train") == [], "nobody asks for classes"
