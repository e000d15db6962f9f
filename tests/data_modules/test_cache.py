"""The decode cache: the same samples, built once, safe under two writers, renewed with its sources, never needed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mtlbench import registry
from mtlbench.data_modules.dense import cache
from mtlbench.data_modules.miniatures import MINIATURES, write_pascal, write_taskonomy
from mtlbench.data_modules.pascal import Pascal
from mtlbench.data_modules.taskonomy import Taskonomy
from mtlbench.errors import DataError
from tests.support.command_line import started

MODULES = {
    "pascal": "Pascal", "nyud": "Nyud", "nyuv2": "NYUv2", "cityscapes": "Cityscapes", "taskonomy": "Taskonomy",
}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_pascal(tmp_path / "data", train=6, val=3)


def caches(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


def same(one: Any, other: Any) -> None:
    assert len(one) == len(other)
    for index in range(len(one)):
        a, b = one[index], other[index]
        assert torch.equal(a["image"], b["image"]) and a["id"] == b["id"] and a["targets"].keys() == b["targets"].keys()
        assert all(torch.equal(a["targets"][t], b["targets"][t]) for t in a["targets"])
        assert a["frame"] == b["frame"] and a["aspect"] == b["aspect"]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("recipe", [0, -1])
def test_cached_samples_are_the_decoded_ones(tmp_path: Path, place: Path, name: str, recipe: int) -> None:
    module = registry.load(f"data_modules.{name}:{MODULES[name]}")
    root = str(MINIATURES[name](tmp_path, train=6, val=2))
    data = module(root, size=[28, 42], recipe=list(module.RECIPES)[recipe])
    for split in data.SPLITS:
        same(data.samples(split), data.originals(split))
        assert isinstance(data.samples(split).stored, cache.Cached)
    assert len(caches(place)) == len(data.SPLITS)


def test_a_cache_is_built_once_and_read_by_later_runs(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Pascal(str(root), size=32).prepare_data()
    built = caches(place)
    assert len(built) == 2 and not [name for name in built if name.startswith(".")]
    calls: list[str] = []
    decode = Pascal.decode
    monkeypatch.setattr(Pascal, "decode", lambda self, image, tasks: calls.append(image) or decode(self, image, tasks))
    samples = Pascal(str(root), size=32).samples("train")
    _ = [samples[i] for i in range(6)]
    assert set(calls) <= {"2008_000000"}, "one is decoded to know the size"
    assert caches(place) == built


def test_another_size_recipe_or_task_is_another_cache(root: Path, place: Path) -> None:
    for options in (
        {"size": 32},
        {"size": 40},
        {"size": 32, "recipe": "invpt"},
        {"size": 32, "tasks": {"semseg": Pascal.TASKS["semseg"]}},
    ):
        Pascal(str(root), **options).samples("train")
    assert len(caches(place)) == 4
    Pascal(str(root), size=32, flip=0.0).samples("train")
    assert len(caches(place)) == 4, "chance comes later"


def test_a_changed_source_renews_it(root: Path, place: Path) -> None:
    before = Pascal(str(root), size=32).samples("train")[0]
    path = root / "PASCAL_MT/sal_distill/2008_000000.png"
    Image.fromarray(255 - np.array(Image.open(path))).save(path)
    after = Pascal(str(root), size=32).samples("train")[0]
    assert torch.equal(after["targets"]["saliency"], 1 - before["targets"]["saliency"])
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    Pascal(str(root), size=32).samples("train")
    assert len(caches(place)) == 3, "another date alone counts: the size may be the same by chance"


def test_no_cache_where_it_is_off_or_too_large(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLBENCH_CACHE_GB", "0.00001")
    assert not isinstance(Pascal(str(root), size=32).samples("train").stored, cache.Cached)
    monkeypatch.setenv("MTLBENCH_CACHE_GB", "2")
    monkeypatch.setenv("MTLBENCH_CACHE", "off")
    assert not isinstance(Pascal(str(root), size=32).samples("train").stored, cache.Cached)
    assert caches(place) == []


def test_a_full_or_forbidden_disk_costs_speed_only(
    root: Path, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "SPARE", 0.0)
    samples = Pascal(str(root), size=32).samples("train")
    assert not isinstance(samples.stored, cache.Cached) and samples[0]["image"].shape == (3, 32, 32)
    assert "too full" in caplog.text and caches(place) == []
    monkeypatch.setattr(cache, "SPARE", 0.9)
    shutil.rmtree(place)
    place.write_text("a file where the folder should be")
    assert not isinstance(Pascal(str(root), size=32).samples("train").stored, cache.Cached)


def test_a_damaged_cache_is_passed_over(root: Path, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = Pascal(str(root), size=32)
    data.samples("train")
    (place / caches(place)[0] / "image.npy").write_bytes(b"\x93NUMPY")
    again = Pascal(str(root), size=32).samples("train")
    assert not isinstance(again.stored, cache.Cached) and "cannot be used" in caplog.text
    same(again, data.originals("train"))


def test_an_unreadable_file_stops_the_building_and_leaves_nothing(root: Path, place: Path) -> None:
    path = root / "PASCAL_MT/JPEGImages/2008_000004.jpg"
    content = path.read_bytes()
    path.write_bytes(content[:500])
    with pytest.raises(DataError, match="2008_000004.jpg"):
        Pascal(str(root), size=32).samples("train")
    assert caches(place) == []
    path.write_bytes(content)
    assert isinstance(Pascal(str(root), size=32).samples("train").stored, cache.Cached)


def _write(root: str, barrier: Any) -> None:
    barrier.wait(60)
    same(Pascal(root, size=32).samples("train"), Pascal(root, size=32).originals("train"))


def test_two_writers_at_once(root: Path, place: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    writers = [context.Process(target=_write, args=(str(root), barrier)) for _ in range(2)]
    with started(*writers):
        for writer in writers:
            writer.join(60)
        assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(caches(place)) == 1 and not caches(place)[0].startswith(".")


def test_samples_of_a_cache_may_be_changed_without_harm(root: Path) -> None:
    samples = Pascal(str(root), size=32).samples("train")
    first = samples[0]
    first["image"].fill_(7)
    first["targets"]["semseg"].fill_(7)
    assert not (samples[0]["image"] == 7).all() and not (samples[0]["targets"]["semseg"] == 7).all()


def test_whole_image_labels_and_gaps_survive(tmp_path: Path) -> None:
    root = write_taskonomy(tmp_path / "t", train=6, val=1, test=1)
    samples = Taskonomy(str(root), size=28).samples("train")
    lacking = [s["id"] for s in (samples[i] for i in range(6)) if "class_object" not in s["targets"]]
    assert lacking == ["beechwood/point_3_view_0"] and isinstance(samples.stored, cache.Cached)


def test_caches_that_nobody_uses_are_removed_and_nothing_else(root: Path, place: Path) -> None:
    old, draft = f"nyud-train-{'0' * 20}", f".nyud-train-{'0' * 20}-abc"
    fresh = f"nyud-val-{'1' * 20}"
    for name in (old, draft, fresh, "photos", "my-own-folder"):
        (place / name).mkdir(parents=True)
    for name in (old, draft, "photos", "my-own-folder"):
        os.utime(place / name, (0, 0))
    data = Pascal(str(root), size=24)
    data.samples("train")
    assert not {old, draft} & set(caches(place)) and {fresh, "photos", "my-own-folder"} <= set(caches(place))
    mine = next(path for path in place.iterdir() if path.name.startswith("pascal-train"))
    os.utime(mine, (0, 0))
    Pascal(str(root), size=24).samples("train")
    assert mine.is_dir() and mine.stat().st_mtime > 0
