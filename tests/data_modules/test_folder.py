"""A folder of images with a table of labels and folders of masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.folder import Folder
from mtlbench.cli.init import write
from mtlbench.errors import MtlbenchError
from mtlbench.testing import check_data_module

TARGETS = {
    "kind": {"kind": "classification", "classes": ["cat", "dog"]},
    "weight": {"kind": "regression"},
    "parts": {"kind": "segmentation", "folder": "masks", "classes": ["paper", "animal"]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of 8 x 12 pixels. The second has no weight, the third no mask."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    lines = ["file,part,kind,weight"]
    for i in range(6):
        pixels = np.full((8, 12, 3), 40 * i, np.uint8)
        pixels[:, :6, 0] = 255
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        mask = np.zeros((8, 12), np.uint8)
        mask[:, :6], mask[0, 0] = 1, 255
        if i != 2:
            Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
        lines.append(f"{i}.png,{'train' if i < 4 else 'val' if i == 4 else 'test'},{'cat' if i % 2 else 'dog'},")
        lines[-1] += "" if i == 1 else str(i / 2)
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def data(folder: Path, **options: Any) -> Folder:
    return Folder(str(folder), **{"targets": TARGETS, "split": {"column": "part"}, **options})


def test_images_cells_and_masks(folder: Path) -> None:
    train = data(folder).samples("train")
    assert [sorted(train[i]["targets"]) for i in range(4)] == [
        ["kind", "parts", "weight"], ["kind", "parts"], ["kind", "weight"], ["kind", "parts", "weight"]
    ]  # fmt: skip
    assert train[3]["image"].shape == (3, 8, 12) and train[3]["image"][:, 0, 11].tolist() == [120, 120, 120]
    assert train[3]["targets"]["weight"] == 1.5 and train[3]["targets"]["kind"] == 0
    assert train[0]["targets"]["parts"].unique().tolist() == [0, 1, 255]
    assert train[3]["id"] == "train/3.png"


def test_images_and_masks_get_another_size_together(folder: Path) -> None:
    sample = data(folder, size=[16, 24]).samples("train")[0]
    assert sample["image"].shape == (3, 16, 24) and sample["targets"]["parts"].shape == (16, 24)
    assert torch.equal(sample["targets"]["parts"] == 0, (torch.arange(24) >= 12).expand(16, 24))


def test_a_mirrored_image_keeps_its_mask_in_place(folder: Path) -> None:
    module = data(folder, mirror=True)
    sample = module.samples("train")[0]
    changed = [module.augment(sample, np.random.default_rng(seed)) for seed in range(8)]
    flipped = [one for one in changed if not torch.equal(one["image"], sample["image"])]
    assert 0 < len(flipped) < 8
    assert all(torch.equal(one["image"][0] == 255, one["targets"]["parts"] != 0) for one in changed)
    assert data(folder).augment(sample, np.random.default_rng(0)) is sample


def test_the_fingerprint_follows_labels_images_and_masks(folder: Path) -> None:
    first = data(folder).fingerprint()
    assert data(folder).fingerprint() == first
    (folder / "masks" / "0.png").unlink()
    assert data(folder).fingerprint() != first


def test_a_folder_keeps_the_contract(folder: Path) -> None:
    found = check_data_module(
        "data_modules.folder:Folder", str(folder), targets=TARGETS, split={"column": "part"}, mirror=True
    )
    assert [finding.detail for finding in found if not finding.ok] == []


def test_the_project_of_init_needs_no_code_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "mine")
    targets = {
        "shape": {"kind": "classification", "classes": ["circle", "square", "triangle"]},
        "size": {"kind": "regression"},
    }
    split = {"column": "split"}
    with pytest.raises(MtlbenchError, match="test"):  # It has two splits; a Folder has three.
        data(tmp_path / "mine" / "data" / "photos", targets=targets, split={"column": "file"}).samples("train")
    photos = data(tmp_path / "mine" / "data" / "photos", targets=targets, split=split)
    assert len(photos.samples("train")) == 96 and "size" not in photos.samples("train")[11]["targets"]


@pytest.mark.parametrize(
    ("fault", "options", "message"),
    [
        ("", {"targets": {"parts": {"kind": "segmentation"}}}, "parts: a segmentation has the `folder`"),
        ("", {"size": [16]}, "height and width in pixels. Found \\[16\\]"),
        ("", {"image": "fil"}, "Unknown column 'fil'.*file"),
        ("image", {}, "0.png.*complete and readable"),
        ("mask", {}, r"0.png.*\(8, 12\)"),
    ],
)
def test_faults_are_named(fault: str, options: dict[str, Any], message: str, folder: Path) -> None:
    if fault == "image":
        (folder / "images" / "0.png").write_bytes(b"nothing")
    if fault == "mask":
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(folder / "masks" / "0.png")
    with pytest.raises(MtlbenchError, match=message):
        data(folder, **options).samples("train")[0]


def test_absent_folders_are_missing(folder: Path) -> None:
    (line,) = data(folder, images="pictures").missing()
    assert "There is no folder" in line and "pictures" in line
