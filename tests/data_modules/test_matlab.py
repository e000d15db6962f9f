"""MATLAB files of version 7.3: the same values as version 5, and the official file of NYU Depth V2."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from mtlbench import cli
from mtlbench.data_modules.dense import decoding, matlab
from mtlbench.data_modules.dense.formats import nyu_labeled
from mtlbench.data_modules.dense.formats.pascal_labels import PART_IDS, parts
from mtlbench.data_modules.miniatures import write_nyud
from mtlbench.data_modules.nyud import Nyud
from mtlbench.errors import DataError

NAMES = ["wall", "lamp", "sofa", "thing"]
CLASSES = [1, 35, 6, 40]
"""Class of each name, in NYU's 40, as `classMapping40.mat` has it."""


class Matlab73:
    """Writes what ``save -v7.3`` writes: 512 bytes before HDF5, reversed axes, references for cells and structs."""

    def __init__(self, path: Path):
        self.file = h5py.File(path, "w", userblock_size=512)

    def __enter__(self) -> Matlab73:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def put(self, value: Any, place: Any = None, name: str = "") -> Any:
        place = place or self.file
        name = name or f"#refs#/{len(self.file.require_group('#refs#'))}"
        if isinstance(value, str):
            stored = place.create_dataset(name, data=np.array([[ord(letter)] for letter in value], np.uint16))
            stored.attrs["MATLAB_class"] = np.bytes_("char")
        elif isinstance(value, tuple) and not value:  # an empty struct array
            stored = place.create_dataset(name, data=np.zeros(2, np.uint64))
            stored.attrs["MATLAB_class"], stored.attrs["MATLAB_empty"] = np.bytes_("struct"), np.uint8(1)
        elif isinstance(value, tuple):  # a 1 x N struct array: rows are dictionaries
            stored = place.create_group(name)
            stored.attrs["MATLAB_class"] = np.bytes_("struct")
            for key in value[0]:
                stored.create_dataset(key, data=self._references([row[key] for row in value]), dtype=h5py.ref_dtype)
        elif isinstance(value, dict):
            stored = place.create_group(name)
            stored.attrs["MATLAB_class"] = np.bytes_("struct")
            for key, item in value.items():
                self.put(item, stored, key)
        elif isinstance(value, list):  # a 1 x N cell array
            stored = place.create_dataset(name, data=self._references(value), dtype=h5py.ref_dtype)
            stored.attrs["MATLAB_class"] = np.bytes_("cell")
        else:
            stored = place.create_dataset(name, data=np.asarray(value).T)
            stored.attrs["MATLAB_class"] = np.bytes_(np.asarray(value).dtype.name)
        return stored

    def _references(self, values: list[Any]) -> np.ndarray:
        made = np.empty((len(values), 1), h5py.ref_dtype)
        made[:, 0] = [self.put(value).ref for value in values]
        return made


def save_73(path: Path, **variables: Any) -> None:
    with Matlab73(path) as file:
        for name, value in variables.items():
            file.put(value, name=name)


def test_both_versions_give_the_same_arrays(tmp_path: Path) -> None:
    matrix = np.arange(6, dtype=np.uint16).reshape(2, 3)
    save_73(tmp_path / "a.mat", LabelMap=matrix, depth=matrix / 4, words=["one", "two", ""])
    savemat(tmp_path / "b.mat", {"LabelMap": matrix, "depth": matrix / 4})
    for key in ("LabelMap", "depth"):
        new, old = (decoding.matrix(tmp_path / name, key) for name in ("a.mat", "b.mat"))
        assert np.array_equal(new, old) and new.dtype == old.dtype and new.shape == (2, 3)
    with matlab.hdf5(tmp_path / "a.mat") as file:
        assert matlab.texts(file["words"], file) == ["one", "two", ""]
    with pytest.raises(DataError, match="a.mat: the file holds the variable labels. Found LabelMap, depth, words"):
        decoding.matrix(tmp_path / "a.mat", "labels")
    with pytest.raises(DataError, match="a.mat: the file holds one array of numbers. Found object"):
        decoding.matrix(tmp_path / "a.mat", "words")


def test_nested_structs_of_parts(tmp_path: Path) -> None:
    one = np.ones((4, 24), np.uint8)
    spots = tuple({"part_name": name, "mask": (np.arange(24) == i) * one} for i, name in enumerate(PART_IDS))
    horse = {"class": "horse", "class_ind": np.array([[13.0]]), "mask": one, "parts": spots[:1]}
    person = {"class": "person", "class_ind": np.array([[15.0]]), "mask": one, "parts": spots}
    nobody = {**person, "parts": ()}
    save_73(tmp_path / "a.mat", anno={"imname": "x", "objects": (horse, person, nobody)})
    found = parts(tmp_path / "a.mat", (4, 24))
    assert (found == [1] * 10 + [2] * 2 + [3] * 2 + [4] * 4 + [5] * 2 + [6] * 4).all()


def test_a_copy_saved_anew_gives_the_same_samples(tmp_path: Path) -> None:
    root = write_nyud(tmp_path, train=2, val=1, layout="astmt")
    before = Nyud(str(root), size=[60, 80]).originals("train")[0]["targets"]
    for key in ("segmentation", "depth"):
        for path in (root / "NYUD_MT" / key).glob("*.mat"):
            save_73(path, **{key: decoding.matrix(path, key)})
            path.rename(path.with_suffix(".MAT"))
    after = Nyud(str(root), size=[60, 80]).originals("train")[0]["targets"]
    assert after.keys() == before.keys() and all(after[name].equal(before[name]) for name in before)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    save_73(path, depth=np.ones((40, 50)))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=r"a.mat: files must be complete.*\(900 bytes\)"):
        decoding.matrix(path, "depth")


def test_without_h5py_the_message_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_73(tmp_path / "a.mat", depth=np.ones((2, 2)))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r'a.mat: .*HDF5.*pip install "mtlbench\[hdf5\]"'):
        decoding.matrix(tmp_path / "a.mat", "depth")


# ---- nyu_depth_v2_labeled.mat ---------------------------------------------------------------------------------------

COUNT, HEIGHT, WIDTH = 5, 6, 8


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """The official file, with five small images."""
    generator = np.random.default_rng(0)
    place = tmp_path / "download"
    place.mkdir()
    save_73(
        place / "nyu_depth_v2_labeled.mat",
        images=generator.integers(0, 256, (HEIGHT, WIDTH, 3, COUNT)).astype(np.uint8),
        depths=generator.uniform(0.7, 10, (HEIGHT, WIDTH, COUNT)).astype(np.float32),
        labels=generator.integers(0, len(NAMES) + 1, (HEIGHT, WIDTH, COUNT)).astype(np.uint16),
        names=NAMES,
        scenes=[f"kitchen_{n:04d}" for n in range(COUNT)],
    )
    savemat(place / "splits.mat", {"trainNdxs": np.array([[1], [3], [5]]), "testNdxs": np.array([[2], [4]])})
    savemat(place / "classMapping40.mat", {"mapClass": np.array([CLASSES], np.uint8)})
    return place / "nyu_depth_v2_labeled.mat"


def test_the_official_layout_is_that_of_h5py(official: Path) -> None:
    with h5py.File(official) as file:
        assert file["images"].shape == (COUNT, 3, WIDTH, HEIGHT) and file["images"].dtype == np.uint8
        assert file["depths"].shape == file["labels"].shape == (COUNT, WIDTH, HEIGHT)
        assert file["names"].shape == (len(NAMES), 1) and file["labels"].dtype == np.uint16


def test_the_official_file_becomes_a_layout_with_the_right_values(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nyu_labeled, "TOGETHER", 2)
    seen: list[tuple[int, int]] = []
    target = Nyud.convert(official, tmp_path / "data", lambda done, total: seen.append((done, total)))
    assert target == tmp_path / "data" / "NYUD_MT" and seen == [(n, COUNT) for n in range(1, COUNT + 1)]
    tasks = {name: Nyud.TASKS[name] for name in ("semseg", "depth")}
    data = Nyud(str(tmp_path / "data"), size=[HEIGHT, WIDTH], tasks=tasks)
    assert data.missing() == [] and data.files.ids("train") == ["0001", "0003", "0005"]
    assert data.files.ids("val") == ["0002", "0004"]
    sample = data.originals("val")[1]  # image 4
    with h5py.File(official) as file:
        image, depth, label = (file[key][3].T for key in ("images", "depths", "labels"))
    assert np.array_equal(sample["image"].permute(1, 2, 0), image)
    assert np.array_equal(sample["targets"]["depth"][0], depth)
    expected = np.array([255, *(number - 1 for number in CLASSES)])[label]
    assert np.array_equal(sample["targets"]["semseg"], expected) and len(np.unique(expected)) == 5


def test_without_the_map_of_classes_there_is_no_segmentation(official: Path, tmp_path: Path) -> None:
    official.with_name("classMapping40.mat").unlink()
    Nyud.convert(official, tmp_path / "data")
    assert Nyud(str(tmp_path / "data")).absent_tasks() == {"semseg", "normals", "edges"}


def rewritten(path: Path, name: str, change: Any) -> None:
    with h5py.File(path, "r+") as file:
        values = file[name][()]
        del file[name]
        if change is not None:
            file[name] = change(values)


@pytest.mark.parametrize(
    ("name", "change", "rule"),
    [
        ("images", lambda a: a.transpose(0, 3, 2, 1), r"images are uint8 \(N, 3, W, H\).*\(5, 6, 8, 3\)"),
        ("depths", lambda a: a[:-1], r"labels whole numbers \(N, W, H\).*\(4, 8, 6\)"),
        ("labels", lambda a: a + np.uint16(1), r"the labels of image 1 are 0..4. Found \[5\]"),
        ("labels", None, "the file holds the variable labels. Found .*depths"),
    ],
)
def test_another_form_is_named_and_nothing_is_written(
    official: Path, tmp_path: Path, name: str, change: Any, rule: str
) -> None:
    rewritten(official, name, change)
    with pytest.raises(DataError, match=f"nyu_depth_v2_labeled.mat: .*{rule}"):
        Nyud.convert(official, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_what_lies_beside_the_official_file_is_checked(official: Path, tmp_path: Path) -> None:
    savemat(official.with_name("classMapping40.mat"), {"mapClass": np.array([[1, 2]])})
    with pytest.raises(DataError, match=r"classMapping40.mat: the map has a class for each of the 4 names. Found 2"):
        Nyud.convert(official, tmp_path / "data")
    savemat(official.with_name("classMapping40.mat"), {"mapClass": np.array([[1, 2, 3, 41]])})
    with pytest.raises(DataError, match=r"classMapping40.mat: classes are whole numbers 0..40. Found \[41\]"):
        Nyud.convert(official, tmp_path / "data")
    official.with_name("classMapping40.mat").unlink()
    savemat(official.with_name("splits.mat"), {"trainNdxs": np.array([[1, 6]]), "testNdxs": np.array([[2]])})
    with pytest.raises(DataError, match=r"splits.mat: images are numbered 1..5. Found \[6\]"):
        Nyud.convert(official, tmp_path / "data")
    official.with_name("splits.mat").unlink()
    with pytest.raises(DataError, match=r"official split.*splits.mat.*Get it"):
        Nyud.convert(official, tmp_path / "data")
    savemat(tmp_path / "old.mat", {"images": np.zeros(3)})
    with pytest.raises(DataError, match=r"old.mat: .*version 7.3. Found a file of another kind"):
        Nyud.convert(tmp_path / "old.mat", tmp_path / "data")


def test_the_command_converts_and_says_what_is_not_in_the_file(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "data")
    assert cli.main(["data", "nyud", "--data", str(official.parent)]) == 2
    assert "--convert FILE" in capsys.readouterr().out
    assert cli.main(["data", "nyud", "--data", root, "--convert", str(official)]) == 2
    told = capsys.readouterr().out
    assert "no labels of edges, normals" in told and "tasks.edges.optional=true tasks.normals.optional=true" in told
    optional = ["tasks.edges.optional=true", "tasks.normals.optional=true"]
    assert cli.main(["data", "nyud", *optional, "--data", root, "--verify"]) == 0
    assert "3 samples, 0 faulty" in capsys.readouterr().out
    assert cli.main(["data", "nyud", *optional, "--data", root, "--convert", str(official)]) == 2
    assert "never replaces data" in capsys.readouterr().err
    shutil.rmtree(root)
    assert cli.main(["data", "nyud", *optional, "--data", root, "--convert", str(official)]) == 0
    assert cli.main(["data", "pascal", "--data", root, "--convert", str(official)]) == 2
    assert "Pascal reads its files as they are" in capsys.readouterr().err
