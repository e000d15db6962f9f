"""NYUD-v2: the three encodings give the same labels, and every fault of a file is named with rule and remedy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from mtlbench.data import Collate
from mtlbench.data_modules.miniatures import write_nyud, write_pascal
from mtlbench.data_modules.nyud import SEMSEG_NAMES, Nyud
from mtlbench.data_modules.rendering import SEMSEG_CLASSES, render
from mtlbench.errors import DataError, SuiteError
from mtlbench.testing import check_data_module

FIRST = "0001"
LAYOUTS = {"vandenhende": "NYUD_MT", "astmt": "NYUD_MT", "invpt": "NYUDv2"}


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLBENCH_CACHE", "off")


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    places = {layout: tmp_path_factory.mktemp(layout) for layout in LAYOUTS}
    return {layout: write_nyud(place, train=6, val=3, layout=layout) for layout, place in places.items()}


@pytest.fixture
def root(copies: dict[str, Path], tmp_path: Path) -> Path:
    """A copy in Vandenhende's encoding that a test may damage."""
    return Path(shutil.copytree(copies["vandenhende"], tmp_path / "copy"))


def only(*tasks: str) -> dict[str, Any]:
    return {"tasks": {name: Nyud.TASKS[name] for name in tasks}}


def first(root: Path, *tasks: str, **options: Any) -> dict[str, Any]:
    return Nyud(str(root), size=[60, 80], **(only(*tasks) if tasks else {}), **options).samples("train")[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("recipe", Nyud.RECIPES)
def test_contract(copies: dict[str, Path], layout: str, recipe: str) -> None:
    findings = check_data_module("data_modules.nyud:Nyud", str(copies[layout]), size=[48, 64], recipe=recipe)
    assert [f.detail for f in findings if not f.ok] == []


def test_labels_are_those_of_the_scene(copies: dict[str, Path]) -> None:
    scene, targets = render(0, [0], 60, 80), first(copies["vandenhende"])["targets"]
    names = np.array(SEMSEG_NAMES)[np.where(targets["semseg"] == 255, 0, targets["semseg"])]
    ground = scene.semseg[0] == SEMSEG_CLASSES.index("ground")
    assert ground.any() and (names[ground] == "floor").all()
    assert (targets["semseg"][scene.semseg[0] == SEMSEG_CLASSES.index("background")] == 255).all()
    depth = targets["depth"][0].numpy()
    assert np.array_equal(depth == 255, (scene.depth[0] == 0) | (np.arange(60) < 6)[:, None])
    assert np.allclose(depth[depth != 255], scene.depth[0][depth != 255])
    normals = targets["normals"].numpy()
    valid = normals[0] != 255
    left_up = scene.normals[0] * np.array([-1, 1, 1])[:, None, None]
    assert np.allclose(normals[:, valid], left_up[:, valid], atol=1e-3) and not valid[:, :5].any()
    assert np.array_equal(targets["edges"][0].numpy(), scene.edges[0])


def test_the_three_encodings_agree(copies: dict[str, Path]) -> None:
    found = {layout: first(place)["targets"] for layout, place in copies.items()}
    one = found["vandenhende"]
    for other in (found["astmt"], found["invpt"]):
        assert all(torch.equal(one[name], other[name]) for name in ("semseg", "depth", "edges"))
        both = (one["normals"][0] != 255) & (other["normals"][0] != 255)
        assert both.sum() > 0.9 * (one["normals"][0] != 255).sum()
        angle = torch.rad2deg(torch.acos((one["normals"] * other["normals"]).sum(0)[both].clamp(-1, 1)))
        assert angle.median() < 4
    assert torch.equal(found["invpt"]["normals"][0] == 255, one["normals"][0] == 255), "8 bits have no exact zero"


def test_of_several_copies_the_largest_counts(copies: dict[str, Path], tmp_path: Path) -> None:
    for layout, place in copies.items():
        shutil.copytree(place, tmp_path / layout)
    write_nyud(tmp_path / "b_largest", train=8, val=3)
    assert Nyud(str(tmp_path)).files.folder == tmp_path / "b_largest" / "NYUD_MT"
    assert Nyud(str(tmp_path / "invpt" / "NYUDv2")).files.folder == tmp_path / "invpt" / "NYUDv2"


def test_another_set_is_called_by_its_name(tmp_path: Path) -> None:
    write_pascal(tmp_path, train=1, val=1)
    (fault,) = Nyud(str(tmp_path)).missing()
    assert "no images or gt_sets" in fault and "looks like PASCAL-Context (suite pascal)" in fault
    assert "14EAEMXmd3zs2hIMY63UhHPSFPDAkiTzw" in fault and "SAMPLE=1" in fault


def test_images_without_a_label_are_missing_labels(copies: dict[str, Path]) -> None:
    data = Nyud(str(copies["astmt"]), size=[60, 80])
    batch = Collate(data.tasks)([data.samples("train")[4]])
    assert batch["counts"]["semseg"] == 0 and batch["counts"]["depth"] > 0


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(SuiteError, match="Unknown recipe 'invpd'.*'invpt'.*data.options.recipe"):
        Nyud(None, recipe="invpd")


# ---- bad input ------------------------------------------------------------------------------------------------------


def array(root: Path, name: str, change: Any) -> Path:
    path = root / "NYUD_MT" / name
    np.save(path, change(np.load(path)))
    return path


def put(values: np.ndarray, value: float) -> np.ndarray:
    values = values.copy()
    values[20, 30] = value
    return values


@pytest.mark.parametrize(
    ("task", "name", "change", "rule"),
    [
        ("depth", "depth/0001.npy", lambda a: put(a, np.nan), "depth is finite.*nan"),
        ("depth", "depth/0001.npy", lambda a: put(a, np.inf), "depth is finite.*inf"),
        ("depth", "depth/0001.npy", lambda a: put(a, -1), r"0\.\.100.*-1"),
        ("depth", "depth/0001.npy", lambda a: a * 1000, r"in metres, 0\.\.100"),
        ("depth", "depth/0001.npy", lambda a: a[:-1], "size of its photograph.*59"),
        ("normals", "normals/0001.npy", lambda a: a * 0.7, "unit vectors.*0.70"),
        ("normals", "normals/0001.npy", lambda a: (a + 1) * 127.5, "unit vectors.*median length of"),
        ("normals", "normals/0001.npy", lambda a: put(a, np.nan), "normals are finite"),
        ("normals", "normals/0001.npy", lambda a: a[..., :2], "three components"),
        ("edges", "edge/0001.npy", lambda a: a * 255, r"edges lie in 0\.\.1.*255"),
    ],
)
def test_a_wrong_array_is_named(root: Path, task: str, name: str, change: Any, rule: str) -> None:
    array(root, name, change)
    with pytest.raises(DataError, match=rf"{name}: .*{rule}.*(Unpack|take the id off)"):
        first(root, task)


@pytest.mark.parametrize("ending", ["jpg", "npy", "png"])
def test_a_truncated_file_is_named(root: Path, ending: str) -> None:
    path = next(p for p in sorted((root / "NYUD_MT").rglob(f"*{FIRST}.{ending}")))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"{path.name}: files must be complete.*bytes.*Unpack"):
        first(root)


def test_a_class_out_of_range_a_wrong_mode_and_a_missing_key(root: Path) -> None:
    path = root / "NYUD_MT/segmentation/0001.png"
    stored = np.array(Image.open(path))
    Image.fromarray(stored + 41).save(path)
    with pytest.raises(DataError, match=r"0001.png: classes are 0 \(unlabelled\) or 1..40. Found \[41"):
        first(root, "semseg")
    Image.fromarray(stored).convert("RGB").save(path)
    with pytest.raises(DataError, match="mode L or P. Found mode RGB"):
        first(root, "semseg")
    path.unlink()
    savemat(path.with_suffix(".mat"), {"labels": stored})
    with pytest.raises(DataError, match="0001.mat: the file holds the variable segmentation. Found labels"):
        first(root, "semseg")
    (root / "NYUD_MT/depth/0001.npy").write_bytes(
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    )
    with pytest.raises(DataError, match="0001.npy: files must be complete and readable"):
        first(root, "depth")


def test_lists_that_are_empty_or_repeat(root: Path) -> None:
    lists = root / "NYUD_MT/gt_sets"
    (lists / "train.txt").write_text("0001\n0002\n0001\n")
    (fault,) = Nyud(str(root)).missing()
    assert "every image once" in fault and "train.txt repeats 0001" in fault and "Remove" in fault
    (lists / "train.txt").write_text("0001\n0007\n")
    (fault,) = Nyud(str(root)).missing()
    assert "No image is in two splits. 0007" in fault
    (lists / "train.txt").write_text("\n")
    (fault,) = Nyud(str(root)).missing()
    assert "train.txt is empty" in fault and "Unpack" in fault
    with pytest.raises(DataError, match="train.txt is empty"):
        Nyud(str(root)).samples("train")


def test_a_file_that_vanishes_is_named(root: Path) -> None:
    samples = Nyud(str(root), size=[60, 80]).samples("train")
    assert samples[1]["id"] == "0002"
    (root / "NYUD_MT/depth/0002.npy").unlink()
    with pytest.raises(DataError, match="0002.npy: files must be complete and readable.*the file is gone"):
        samples[1]
    assert samples[0]["id"] == FIRST, "the others can still be read"
