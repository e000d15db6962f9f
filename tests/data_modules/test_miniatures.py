"""The miniature has the layout, the encodings and the gaps of the real data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from mtlbench.data_modules.miniatures import MARK, MINIATURES, write_pascal
from mtlbench.data_modules.miniatures import pascal as miniatures
from mtlbench.data_modules.pascal import Pascal
from mtlbench.errors import DataError


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pascal(tmp_path_factory.mktemp("mini"), train=6, val=4) / "PASCAL_MT"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_layout(written: Path) -> None:
    folders = {str(p.parent.relative_to(written)): 0 for p in written.rglob("*.*")}
    assert set(folders) == {
        ".",
        "JPEGImages",
        "ImageSets/Context",
        "pascal-context/trainval",
        "semseg/VOC12",
        "semseg/pascal-context",
        "human_parts",
        "sal_distill",
        "normals_distill",
    }
    train, val = ((written / "ImageSets/Context" / f"{s}.txt").read_text().split() for s in ("train", "val"))
    assert (len(train), len(val), len({*train, *val})) == (6, 4, 10)
    sizes = {Image.open(p).size for p in (written / "JPEGImages").iterdir()}
    assert len(sizes) > 5 and any(w != h for w, h in sizes)


def test_encodings(written: Path) -> None:
    image = "2008_000000"
    segmentation = Image.open(written / "semseg/VOC12" / f"{image}.png")
    assert segmentation.mode == "P"
    assert segmentation.getpalette()[3 * 15 : 3 * 16] == [192, 128, 128], "VOC's person colour"
    assert Image.open(written / "sal_distill" / f"{image}.png").mode == "L"
    assert loadmat(written / "pascal-context/trainval" / f"{image}.mat")["LabelMap"].dtype == np.uint16
    anno = loadmat(written / "human_parts" / f"{image}.mat")["anno"]
    assert anno.shape == (1, 1) and anno.dtype.names == ("imname", "objects")
    assert anno[0, 0]["objects"].dtype.names == ("class", "class_ind", "mask", "parts")
    people = [o for o in anno[0, 0]["objects"][0] if o["class_ind"][0, 0] == 15]
    assert people and people[0]["parts"].dtype.names == ("part_name", "mask")


def test_persons_without_parts_are_there_on_purpose(written: Path) -> None:
    anno = loadmat(written / "human_parts" / "2008_000004.mat")["anno"]
    people = [o for o in anno[0, 0]["objects"][0] if o["class_ind"][0, 0] == 15]
    assert people and all(p["parts"].size == 0 for p in people)


def test_same_arguments_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    again = write_pascal(tmp_path, train=6, val=4) / "PASCAL_MT"
    assert contents(again) == contents(written)
    other = write_pascal(tmp_path / "other", train=1, val=1, seed=1) / "PASCAL_MT"
    assert contents(other)["JPEGImages/2008_000000.jpg"] != contents(written)["JPEGImages/2008_000000.jpg"]


def test_without_normals_the_task_is_absent(tmp_path: Path) -> None:
    assert Pascal(str(write_pascal(tmp_path, train=1, val=1, normals=False))).absent_tasks() == {"normals"}


def test_a_killed_writer_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(miniatures, "_anno", stop)
    with pytest.raises(KeyboardInterrupt):
        write_pascal(tmp_path, train=1, val=1)
    assert list(tmp_path.iterdir()) == []


def test_a_miniature_is_kept_and_other_data_is_never_replaced(tmp_path: Path) -> None:
    write_pascal(tmp_path, train=1, val=1)
    before = (tmp_path / "PASCAL_MT" / MARK).stat().st_mtime_ns
    assert MINIATURES["pascal"](tmp_path, train=1, val=1) == tmp_path
    assert (tmp_path / "PASCAL_MT" / MARK).stat().st_mtime_ns == before
    with pytest.raises(DataError, match="never replaces"):
        write_pascal(tmp_path, train=2, val=1)
    (tmp_path / "PASCAL_MT" / MARK).unlink()
    with pytest.raises(DataError, match="no miniature"):
        write_pascal(tmp_path, train=1, val=1)


def test_the_mark_says_what_it_is(written: Path) -> None:
    recipe = {"set": "pascal", "version": 1, "train": 6, "val": 4, "seed": 0, "normals": True}
    assert json.loads((written / MARK).read_text()) == recipe
