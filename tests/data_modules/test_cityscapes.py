"""Cityscapes: official folders and reduced sets, label ids by hand, disparity, and faults of files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mtlbench.data import Collate
from mtlbench.data_modules.cityscapes import Cityscapes, Cityscapes19
from mtlbench.data_modules.miniatures import write_cityscapes
from mtlbench.data_modules.rendering import render
from mtlbench.errors import DataError
from mtlbench.testing import check_data_module

STEM = "train/aachen/aachen_000000_000019"


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLBENCH_CACHE", "off")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cityscapes(tmp_path_factory.mktemp("cityscapes"), train=5, val=2)


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


def file(root: Path, kind: str, ending: str) -> Path:
    return root / "cityscapes" / kind / f"{STEM}_{ending}.png"


@pytest.mark.parametrize("layout", ["official", "npy", "png"])
@pytest.mark.parametrize(("name", "classes"), [("Cityscapes", 7), ("Cityscapes19", 19)])
def test_contract_in_every_layout(tmp_path: Path, layout: str, name: str, classes: int) -> None:
    root = write_cityscapes(tmp_path, train=11, val=2, layout=layout, classes=classes)
    for recipe in Cityscapes.RECIPES:
        findings = check_data_module(f"data_modules.cityscapes:{name}", str(root), size=[24, 48], recipe=recipe)
        assert [f.detail for f in findings if not f.ok] == []
    ids = Cityscapes(str(root)).files.ids("train")
    assert ids[0] == STEM if layout == "official" else ids == [f"train/{n}" for n in range(11)]


def test_official_label_ids_by_hand(root: Path) -> None:
    stored = np.zeros((32, 64), np.uint8)
    stored[0, :36] = [*range(34), 255, 255]
    Image.fromarray(stored).save(file(root, "gtFine", "gtFine_labelIds"))
    fine, coarse = (
        m(str(root), size=[32, 64]).samples("train")[0]["targets"]["semseg"] for m in (Cityscapes19, Cityscapes)
    )
    n = 255
    assert fine[0, :36].tolist() == [
        n,
        n,
        n,
        n,
        n,
        n,
        n,
        0,
        1,
        n,
        n,
        2,
        3,
        4,
        n,
        n,
        n,
        5,
        n,
        6,
        7,
        8,
        9,
        10,
        11,
        12,
        13,
        14,
        15,
        n,
        n,
        16,
        17,
        18,
        n,
        n,
    ]
    groups = {0: range(7, 11), 1: range(11, 17), 2: range(17, 21), 3: (21, 22), 4: (23,), 5: (24, 25), 6: range(26, 34)}
    expected = [next((g for g, ids in groups.items() if i in ids), n) for i in range(34)]
    assert coarse[0, :34].tolist() == expected
    assert (fine[1:] == n).all() and (coarse[1:] == n).all()


def test_disparity_by_hand(root: Path) -> None:
    stored = np.zeros((32, 64), np.uint16)
    stored[0, :4] = 1, 257, 513, 65535
    Image.fromarray(stored).save(file(root, "disparity", "disparity"))
    found = Cityscapes(str(root), size=[32, 64]).samples("train")[0]["targets"]["depth"][0]
    assert found[0, 1:4].tolist() == pytest.approx([1, 2, 65534 / 256])
    assert 0 < found[0, 0] < 0.01, "v = 1 is valid: disparity 0"
    assert (found[1:] == 255).all()


def test_disparity_written_is_disparity_read(pristine: Path) -> None:
    sample = Cityscapes(str(pristine), size=[32, 64]).samples("train")[0]
    depth = render(0, [0], 32, 64).depth[0]
    found = sample["targets"]["depth"][0].numpy()
    assert np.array_equal(found == 255, depth == 0)
    assert np.allclose(found[depth > 0], 20 / depth[depth > 0], atol=1 / 256)


def test_the_mean_of_the_metric_has_no_metres(pristine: Path) -> None:
    data = Cityscapes(str(pristine), size=[32, 64])
    task = data.tasks["depth"]
    target = data.samples("train")[0]["targets"]["depth"][None]
    metric = task.metric()
    metric.update(torch.where(target == 255, 0, target * 1.5), target)
    found = metric.compute()
    assert found["inverse_depth_rel@1"] == pytest.approx(0.5, abs=1e-6)
    assert found.keys() == {p.id for p in task.protocols} and all(p.unit == "" for p in task.protocols)


def test_an_image_without_any_label_costs_nothing(pristine: Path) -> None:
    data = Cityscapes(str(pristine), size=[32, 64])
    index = data.files.ids("train").index("train/bochum/bochum_000003_000019")
    batch = Collate(data.tasks)([data.samples("train")[index]])
    assert batch["counts"] == {"semseg": 0, "depth": 0}
    for task in data.tasks.values():
        prediction = torch.full((1, task.channels, 32, 64), float("nan"), requires_grad=True)
        loss = task.loss(prediction, batch["targets"][task.name])
        loss.backward()
        assert loss.item() == 0 and prediction.grad is not None and not prediction.grad.any()


def test_nineteen_classes_where_seven_are_wanted_are_named(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path, train=6, val=1, layout="npy", classes=19)
    with pytest.raises(DataError, match=r"classes are 0\.\.6, or -1 for ignore"):
        list(Cityscapes(str(root)).samples("train"))


@pytest.mark.parametrize(
    ("kind", "ending", "change", "rule"),
    [
        ("disparity", "disparity", lambda a: (a // 256).astype(np.uint8), "I;16.*16 bits read as 8.*mode L"),
        ("gtFine", "gtFine_labelIds", lambda a: a + 40, r"0\.\.33, or 255"),
        ("gtFine", "gtFine_labelIds", lambda a: a[:-1], "size of its photograph"),
        ("disparity", "disparity", lambda a: a[:, 1:], "size of its photograph"),
    ],
)
def test_a_wrong_picture_is_named(root: Path, kind: str, ending: str, change: Any, rule: str) -> None:
    path = file(root, kind, ending)
    Image.fromarray(change(np.array(Image.open(path)))).save(path)
    with pytest.raises(DataError, match=rf"{path.name}: .*{rule}"):
        Cityscapes(str(root)).samples("train")[0]


def test_infinite_depth_of_a_reduced_set_is_named(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path, train=1, val=1, layout="npy")
    path = root / "cityscapes/train/depth/0.npy"
    np.save(path, np.where(np.load(path) > 0, np.inf, 0))
    with pytest.raises(DataError, match=r"depth/0.npy: inverse depth is finite.*inf"):
        Cityscapes(str(root)).samples("train")[0]
