"""NYUv2 in MTAN's form: numbers without zeros, last axis first, -1 and 0 for nothing, and no other layout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtlbench.data import Collate
from mtlbench.data_modules.miniatures import write_cityscapes, write_nyuv2
from mtlbench.data_modules.nyuv2 import NYUv2
from mtlbench.data_modules.rendering import render
from mtlbench.errors import DataError
from mtlbench.testing import check_data_module


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLBENCH_CACHE", "off")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nyuv2(tmp_path_factory.mktemp("nyuv2"), train=12, val=3)


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


@pytest.mark.parametrize("recipe", NYUv2.RECIPES)
def test_contract(pristine: Path, recipe: str) -> None:
    findings = check_data_module("data_modules.nyuv2:NYUv2", str(pristine), size=[40, 56], recipe=recipe)
    assert [f.detail for f in findings if not f.ok] == []


def test_order_is_that_of_the_numbers(pristine: Path) -> None:
    assert NYUv2(str(pristine)).files.ids("train") == [f"train/{n}" for n in range(12)], "2 before 10"
    assert NYUv2(str(pristine)).files.ids("val") == ["val/0", "val/1", "val/2"]


def test_labels_are_those_of_the_scene(pristine: Path) -> None:
    data = NYUv2(str(pristine), size=[48, 64])
    sample, scene = data.samples("train")[10], render(0, [10], 48, 64)
    targets = sample["targets"]
    assert torch.equal(sample["image"], torch.from_numpy(scene.image[0]))
    semseg = np.where(scene.semseg[0] == 0, 255, scene.semseg[0])
    assert np.array_equal(targets["semseg"], semseg)
    blind = (scene.depth[0] == 0) | (np.arange(48) < 5)[:, None]
    assert np.array_equal(targets["depth"][0] == 255, blind)
    valid = targets["normals"][0] != 255
    assert np.allclose(targets["normals"][:, valid], scene.normals[0][:, valid], atol=1e-3) and not valid[:, :4].any()
    assert data.augment(sample, np.random.default_rng(0))["targets"]["semseg"].equal(targets["semseg"]), (
        "off by default"
    )


def test_a_normal_whose_components_sum_to_zero_is_valid(root: Path) -> None:
    path = root / "nyuv2/train/normal/0.npy"
    normals = np.load(path)
    normals[20, 20] = np.array([1, -1, 0]) / np.sqrt(2)
    np.save(path, normals)
    found = NYUv2(str(root), size=[48, 64]).samples("train")[0]["targets"]["normals"][:, 20, 20]
    assert torch.allclose(found, torch.tensor([0.7071, -0.7071, 0.0]), atol=1e-3)


def test_an_all_void_label_is_a_missing_label(pristine: Path) -> None:
    data = NYUv2(str(pristine), size=[48, 64])
    samples = data.samples("train")
    batch = Collate(data.tasks)([samples[4]])
    assert batch["counts"]["semseg"] == 0 and batch["counts"]["depth"] > 0
    prediction = torch.zeros(1, 13, 48, 64, requires_grad=True)
    loss = data.tasks["semseg"].loss(prediction, batch["targets"]["semseg"])
    loss.backward()
    assert loss.item() == 0 and prediction.grad is not None and not prediction.grad.any()


def test_other_layouts_are_called_by_their_names(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, train=1, val=1)
    (fault,) = NYUv2(str(tmp_path)).missing()
    assert "train/image/*.npy" in fault and "looks like Cityscapes (suite cityscapes)" in fault


@pytest.mark.parametrize(
    ("name", "change", "rule"),
    [
        ("image", lambda a: a * 255, r"an image lies in 0\.\.1"),
        ("image", lambda a: a.transpose(2, 0, 1), r"the shape \(height, width, 3\)"),
        ("label", lambda a: a + 9, r"classes are 0\.\.12, or -1"),
        ("label", lambda a: a[:, 1:], "size of its photograph"),
        ("label", lambda a: a + 0.5, r"classes are 0\.\.12"),
        ("depth", lambda a: np.where(a > 2, np.nan, a), "depth is finite"),
        ("normal", lambda a: a * 2, "unit vectors"),
    ],
)
def test_a_wrong_array_is_named(root: Path, name: str, change: Any, rule: str) -> None:
    path = root / "nyuv2/train" / name / "0.npy"
    np.save(path, change(np.load(path)))
    with pytest.raises(DataError, match=rf"{name}/0.npy: .*{rule}"):
        NYUv2(str(root)).samples("train")[0]


def test_other_faults_of_the_folders(root: Path) -> None:
    (root / "nyuv2/train/depth/7.npy").unlink()
    shutil.rmtree(root / "nyuv2/val")
    faults = NYUv2(str(root)).missing()
    assert len(faults) == 2 and "'val'" in faults[0] and "train/7" in faults[1] and "1 of 12" in faults[1]
    (root / "nyuv2/train/image/copy of 1.npy").write_bytes(b"")
    assert "images are numbered" in NYUv2(str(root)).missing()[0]
