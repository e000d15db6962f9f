"""Taskonomy: buildings, splits, thirteen targets by hand, holes, soft classes, and faults of files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, special

from mtlbench.data import Collate
from mtlbench.data_modules.miniatures import write_taskonomy
from mtlbench.data_modules.taskonomy import Taskonomy
from mtlbench.errors import DataError, SuiteError
from mtlbench.testing import check_data_module

FIRST = ("hiteman", "point_0_view_0")
MASKED = {
    "depth_euclidean", "depth_zbuffer", "normal", "principal_curvature", "edge_occlusion", "keypoints3d", "reshading",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLBENCH_CACHE", "off")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_taskonomy(tmp_path_factory.mktemp("taskonomy"), train=6, val=2, test=2)


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "copy")) / "taskonomy"


def only(*tasks: str) -> dict[str, Any]:
    return {"tasks": {name: Taskonomy.TASKS[name] for name in tasks}}


def place(root: Path, domain: str, building: str = FIRST[0], view: str = FIRST[1], ending: str = "png") -> Path:
    return root / domain / "taskonomy" / building / f"{view}_domain_{domain}.{ending}"


def native(root: Path, *tasks: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the first picture and its targets at the size of the files."""
    data = Taskonomy(str(root), **(only(*tasks) if tasks else {}))
    pixels, labels = data.decode("/".join(FIRST), data.readable())
    axes = {name: label.transpose(2, 0, 1) if label.ndim == 3 else label for name, label in labels.items()}
    return pixels, {name: data.tasks[name].restore(label) for name, label in axes.items()}


def pixels(root: Path, domain: str, **where: str) -> np.ndarray:
    return np.array(Image.open(place(root, domain, **where)))


def test_contract(pristine: Path) -> None:
    findings = check_data_module("data_modules.taskonomy:Taskonomy", str(pristine), size=[28, 42])
    assert [f.detail for f in findings if not f.ok] == []


def test_splits_follow_the_list_and_the_buildings_that_are_there(pristine: Path) -> None:
    data = Taskonomy(str(pristine), size=28)
    ids = {split: data.files.ids(split) for split in data.SPLITS}
    assert {i.split("/")[0] for i in ids["train"]} == {"hiteman", "beechwood"}
    assert {i.split("/")[0] for i in ids["val"]} == {"corozal"} and {i.split("/")[0] for i in ids["test"]} == {"ihlen"}
    assert [len(ids[s]) for s in data.SPLITS] == [6, 2, 2], "the picture without maps does not count"
    assert data.missing() == []
    assert data.files.about()[1] == "4 of 5 listed buildings are there"
    assert data.samples("val")[0]["image"].shape == (3, 28, 28) and data.samples("train")[0]["image"].shape == (
        3,
        32,
        32,
    )


def test_all_runs_see_the_same_images(pristine: Path) -> None:
    single = Taskonomy(str(pristine), **only("class_scene")).files.ids("train")
    assert single == Taskonomy(str(pristine)).files.ids("train")


def test_all_three_trees_are_accepted(root: Path) -> None:
    wanted = Taskonomy(str(root)).files.ids("train")
    for domain in [p for p in root.iterdir() if (p / "taskonomy").is_dir()]:
        for building in (domain / "taskonomy").iterdir():
            building.rename(domain / building.name)
        (domain / "taskonomy").rmdir()
    data = Taskonomy(str(root), size=28)
    assert data.files.ids("train") == wanted and len(data.samples("train")[0]["targets"]) == 13
    for domain in [p for p in root.iterdir() if (p / "hiteman").is_dir()]:
        for building in [p for p in domain.iterdir() if p.is_dir()]:
            for path in building.iterdir():
                path.rename(domain / path.name)
            building.rmdir()
    data = Taskonomy(str(root), size=28)
    assert sorted(i for s in data.SPLITS for i in data.files.ids(s)) == [f"/point_{n}_view_{n % 3}" for n in range(10)]
    assert [len(data.files.ids(s)) for s in data.SPLITS] == [6, 2, 2] and data.missing() == []
    assert len(data.samples("train")[0]["targets"]) == 13


def test_targets_by_hand(root: Path) -> None:
    _, found = native(root)
    hole = pixels(root, "mask_valid") == 0
    assert 0 < hole.mean() < 1
    for name in MASKED:
        assert np.array_equal(found[name][0] == 255, hole), name
    for name in found.keys() - MASKED - {"class_object", "class_scene"}:
        assert not (found[name] == 255).any(), name
    valid = ~hole
    depth = pixels(root, "depth_zbuffer").astype(float)
    assert np.allclose(found["depth_zbuffer"][0][valid], np.log(1 + depth[valid]) / np.log(65536), atol=1e-6)
    for name, share in (("edge_texture", 0.08), ("keypoints2d", 0.005), ("keypoints3d", 1.0)):
        expected = np.clip(pixels(root, name) / (share * 65536), 0, 1) * 2 - 1
        seen = valid if name in MASKED else valid | True
        assert np.allclose(found[name][0][seen], expected[seen], atol=1e-3), name
    occlusion = ndimage.gaussian_filter(pixels(root, "edge_occlusion") / (0.00625 * 65536) * 2 - 1, 4)
    assert np.allclose(found["edge_occlusion"][0][valid], occlusion[valid], atol=2e-3)
    shading = pixels(root, "reshading")[..., 0] / 255 * 2 - 1
    assert np.allclose(found["reshading"][0][valid], shading[valid], atol=1e-3)
    assert np.allclose(found["segment_unsup2d"][0], pixels(root, "segment_unsup2d") / 255 * 2 - 1, atol=1e-3)
    bend = (pixels(root, "principal_curvature")[..., :2] - [123.572, 120.1]) / [31.922, 21.658]
    assert np.allclose(found["principal_curvature"][:, valid].T, bend[valid], atol=4e-3)
    normals = pixels(root, "normal")[valid] / 255 * 2 - 1
    assert np.allclose(found["normal"][:, valid].T, normals / np.linalg.norm(normals, axis=1)[:, None], atol=1e-5)


def test_surfaces_that_face_the_camera_have_low_channel_two(root: Path) -> None:
    _, found = native(root, "normal")
    valid = found["normal"][0] != 255
    assert (found["normal"][2][valid] < 0).mean() > 0.9, "stored as (right, down, away)"
    assert found["normal"][1][valid].mean() < 0, "the ground points up, and down is positive"


def test_classes_are_distributions(root: Path) -> None:
    _, found = native(root, "class_object", "class_scene")
    logits = np.load(place(root, "class_object", ending="npy"))
    assert logits.shape == (1, 1000) and np.allclose(found["class_object"], special.softmax(logits[0]), atol=1e-6)
    scene = np.load(place(root, "class_scene", ending="npy"))
    assert np.allclose(found["class_scene"], scene, atol=1e-6), "probabilities stay what they are"
    np.save(place(root, "class_scene", ending="npy"), scene * 0.7)
    assert np.allclose(native(root, "class_scene")[1]["class_scene"], scene, atol=1e-6), "their sum is 1 again"


def test_absent_class_files_are_missing_labels(root: Path) -> None:
    data = Taskonomy(str(root), size=28, **only("class_object", "class_scene"))
    ids = data.files.ids("train")
    lacking = ids.index("beechwood/point_3_view_0")
    place(root, "class_scene", ending="npy").write_bytes(b"\x93NUMPY")
    sample = data.samples("train")
    assert set(sample[lacking]["targets"]) == {"class_scene"} and set(sample[0]["targets"]) == {"class_object"}
    batch = Collate(data.tasks)([sample[i] for i in range(len(ids))])
    assert batch["counts"] == {"class_object": 5, "class_scene": 5}
    task = data.tasks["class_object"]
    scores = torch.full((6, 1000), float("nan"))
    scores[[i for i in range(6) if i != lacking]] = batch["targets"]["class_object"][
        [i for i in range(6) if i != lacking]
    ].log()
    scores.requires_grad_()
    loss = task.loss(scores, batch["targets"]["class_object"])
    loss.backward()
    assert scores.grad is not None and scores.grad.isfinite().all() and scores.grad.abs().max() < 1e-5, (
        "a perfect guess"
    )
    metric = task.metric()
    metric.update(scores.detach(), batch["targets"]["class_object"])
    assert metric.compute()["soft_accuracy@1"] == 1


def test_a_mask_is_derived_where_none_is_shipped(root: Path) -> None:
    assert not place(root, "mask_valid", "beechwood", "point_1_view_1").exists()
    data = Taskonomy(str(root))
    _, labels = data.decode("beechwood/point_1_view_1", ["normal", "keypoints3d"])
    hole = pixels(root, "depth_zbuffer", building="beechwood", view="point_1_view_1") == 65535
    assert np.array_equal(labels["keypoints3d"] == 255, hole)


def test_lists_and_subsets(root: Path) -> None:
    with pytest.raises(SuiteError, match="Unknown subset 'tinny'.*'tiny'"):
        Taskonomy(str(root), subset="tinny")
    listed = root / "splits_taskonomy/train_val_test_medium.csv"
    listed.write_bytes(b"id,train,val,test\rihlen,1,0,0\rcorozal,0,1,0\rwoodbine,1,0,0\rbeechwood,0,0,1\r")
    (root / "rgb/taskonomy/woodbine").mkdir()
    data = Taskonomy(str(root), subset="medium")
    assert [len(data.files.ids(s)) for s in data.SPLITS] == [2, 2, 3] and data.missing() == []
    listed.write_text("name;train\n")
    assert "begins with id,train,val,test" in Taskonomy(str(root), subset="medium").missing()[0]
    listed.write_bytes(b"id,train,val,test\rallensville,1,0,0\rcorozal,0,1,0\rbeechwood,0,0,1\r")
    (fault,) = Taskonomy(str(root), subset="medium").missing()
    assert "'train' of the list 'medium'" in fault and "is empty" in fault
    listed.unlink()
    assert "splits_taskonomy/train_val_test_medium.csv" in Taskonomy(str(root), subset="medium").missing()[0]
    shutil.rmtree(root / "normal")
    assert Taskonomy(str(root)).absent_tasks() == {"normal"}


@pytest.mark.parametrize(
    ("domain", "change", "rule"),
    [
        ("depth_zbuffer", lambda a: (a // 256).astype(np.uint8), "16 bits read as 8 lose the lower half.*mode L"),
        ("keypoints2d", lambda a: a.astype(np.uint8), "I;16.*mode L"),
        ("normal", lambda a: a[..., 0], "mode RGB. Found mode L"),
        ("normal", lambda a: (a * 0.3 + 90).astype(np.uint8) * 0, "unit vectors"),
        ("reshading", lambda a: a[1:], "size of its photograph"),
    ],
)
def test_a_wrong_picture_is_named(root: Path, domain: str, change: Any, rule: str) -> None:
    path = place(root, domain)
    Image.fromarray(change(np.array(Image.open(path)))).save(path)
    with pytest.raises(DataError, match=rf"{path.name}: .*{rule}"):
        native(root, domain)


def test_a_wrong_class_file_is_named(root: Path) -> None:
    path = place(root, "class_object", ending="npy")
    np.save(path, np.zeros(100, np.float32))
    with pytest.raises(DataError, match=rf"{path.name}: a class file holds 1000 values.*\(100,\)"):
        native(root, "class_object")
    np.save(path, np.full(1000, np.nan))
    with pytest.raises(DataError, match="finite"):
        native(root, "class_object")


def test_lists_hold_ones_zeros_and_blanks(root: Path) -> None:
    path = root / "splits_taskonomy/train_val_test_tiny.csv"
    expected = Taskonomy(str(root)).files.listed()
    text = path.read_text()
    lines = text.splitlines()
    spaced = [lines[0].replace(",", " , ")]
    spaced += [",".join({"1": " 1.0", "0": "0.0 "}.get(word, word) for word in line.split(",")) for line in lines[1:]]
    path.write_text("\n".join(spaced))
    assert Taskonomy(str(root)).files.listed() == expected
    path.write_text("\n".join([lines[0], *(line.replace(",0", ",") for line in lines[1:])]))
    assert Taskonomy(str(root)).files.listed() == expected
    path.write_text("\n".join([*lines[:2], lines[2].replace("1", "yes")]))
    with pytest.raises(DataError, match="tiny.csv, line 3.*'yes'"):
        Taskonomy(str(root)).files.listed()


def test_the_debug_list_may_have_one_building_in_all_splits(root: Path) -> None:
    shared = f"id,train,val,test\n{FIRST[0]},1,1,1\n"
    for subset in ("debug", "tiny"):
        (root / f"splits_taskonomy/train_val_test_{subset}.csv").write_text(shared)
    data = Taskonomy(str(root), subset="debug")
    assert not data.missing() and data.files.ids("train") == data.files.ids("test")
    assert "No image is in two splits" in "".join(Taskonomy(str(root), subset="tiny").missing())
