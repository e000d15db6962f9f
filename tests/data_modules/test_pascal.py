"""PASCAL-Context: what is written is what is read, faults are named, and the augmentation keeps the geometry."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from scipy.io import loadmat, savemat

from mtlbench.data import Collate
from mtlbench.data_modules.dense.boundaries import boundaries, thin
from mtlbench.data_modules.dense.formats.pascal_labels import NORMALS_IDS, PART_IDS, PARTS, parts
from mtlbench.data_modules.dense.warp import AXES, Warp
from mtlbench.data_modules.miniatures import palette, write_pascal
from mtlbench.data_modules.pascal import Pascal
from mtlbench.errors import DataError, SuiteError

FIRST = "2008_000000"


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLBENCH_CACHE", "off")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pascal(tmp_path_factory.mktemp("pascal"), train=6, val=3)


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


def only(*tasks: str, optional: str = "") -> dict[str, Any]:
    return {"tasks": {name: Pascal.TASKS[name].with_options(optional=name == optional) for name in tasks}}


def native(root: Path, image: str = FIRST, **options: Any) -> tuple[dict[str, Any], Path]:
    """Returns a sample at the photograph's own size, so that nothing is resampled, and the data's folder."""
    folder = root / "PASCAL_MT"
    width, height = Image.open(folder / "JPEGImages" / f"{image}.jpg").size
    data = Pascal(str(root), size=(height, width), **options)
    samples = data.originals("train")
    return samples[data.files.ids("train").index(image)], folder


def context_of(folder: Path, image: str = FIRST) -> np.ndarray:
    return loadmat(folder / "pascal-context/trainval" / f"{image}.mat")["LabelMap"]


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


def test_samples_meet_the_contract(pristine: Path) -> None:
    data = Pascal(str(pristine), size=[48, 64])
    batch = Collate(data.tasks)([data.augment(s, np.random.default_rng(0)) for s in data.samples("train")])
    assert batch["image"].shape == (6, 3, 48, 64) and batch["image"].dtype == torch.uint8
    assert {n: (tuple(t.shape[1:]), t.dtype) for n, t in batch["targets"].items()} == {
        "semseg": ((48, 64), torch.int64),
        "parts": ((48, 64), torch.int64),
        "saliency": ((1, 48, 64), torch.float32),
        "normals": ((3, 48, 64), torch.float32),
        "edges": ((1, 48, 64), torch.float32),
    }
    assert [task.scale for task in data.tasks.values()] == [1, 2, 5, 10, 50]
    assert batch["counts"]["normals"] > 0


def test_labels_read_are_labels_written(pristine: Path) -> None:
    sample, folder = native(pristine)
    targets = sample["targets"]
    assert np.array_equal(targets["semseg"], np.array(Image.open(folder / "semseg/VOC12" / f"{FIRST}.png")))
    assert np.array_equal(targets["saliency"][0] * 255, np.array(Image.open(folder / "sal_distill" / f"{FIRST}.png")))
    photo = np.array(Image.open(folder / "JPEGImages" / f"{FIRST}.jpg"))
    assert np.array_equal(sample["image"].permute(1, 2, 0), photo)


def test_voc_folder_comes_first_and_the_other_is_the_fall_back(root: Path) -> None:
    sample, folder = native(root, "2008_000003", **only("semseg"))
    assert not (folder / "semseg/VOC12/2008_000003.png").exists()
    stored = np.array(Image.open(folder / "semseg/pascal-context/2008_000003.png"))
    assert np.array_equal(sample["targets"]["semseg"], stored)
    palette(np.full_like(stored, 7)).save(folder / "semseg/VOC12/2008_000003.png")
    assert (native(root, "2008_000003", **only("semseg"))[0]["targets"]["semseg"] == 7).all()


def save_anno(path: Path, objects: list[tuple[str, int, np.ndarray, Any]], *, named: bool = True) -> None:
    def struct(rows: list[tuple], names: tuple[str, ...]) -> np.ndarray:
        names = names if named else tuple(f"field{i}" for i in range(len(names)))
        return np.array([rows], dtype=[(n, object) for n in names]) if rows else np.zeros((0, 0))

    rows = [(c, i, m, struct(p, ("part_name", "mask"))) for c, i, m, p in objects]
    anno = struct([("x", struct(rows, ("class", "class_ind", "mask", "parts")))], ("imname", "objects"))
    savemat(path, {"anno": anno})


@pytest.mark.parametrize("named", [True, False], ids=["by name", "by position"])
def test_parts_are_mapped_by_name_and_later_ones_overwrite(tmp_path: Path, named: bool) -> None:
    one = np.ones((4, 24), np.uint8)
    spots = [(name, (np.arange(24) == i) * one) for i, name in enumerate(PART_IDS)]
    horse = ("horse", 13, one, [("head", one)])
    late = ("person", 15, one, [("nose", (np.arange(24) == 23) * one)])
    save_anno(tmp_path / "a.mat", [("person", 15, one, spots), horse, ("person", 15, one, []), late], named=named)
    found = parts(tmp_path / "a.mat", (4, 24))[0].tolist()
    classes = [1] * 10 + [2] * 2 + [3] * 2 + [4] * 4 + [5] * 2 + [6] * 4
    assert found == classes[:-1] + [1]
    assert [len(names) for names in PARTS.values()] == [0, 10, 2, 2, 4, 2, 4]


def test_parts_written_are_parts_read(pristine: Path) -> None:
    from mtlbench.data_modules.rendering import render

    sample, _ = native(pristine, **only("parts"))
    height, width = sample["image"].shape[1:]
    assert np.array_equal(sample["targets"]["parts"], render(0, [0], height, width).parts[0])


def test_an_image_without_parts_has_no_target(root: Path) -> None:
    sample, folder = native(root, "2008_000004")
    assert "parts" not in sample["targets"] and "semseg" in sample["targets"]
    save_anno(folder / "human_parts" / f"{FIRST}.mat", [])
    assert "parts" not in native(root)[0]["targets"]
    assert len(Pascal(str(root), size=16, **only("parts")).samples("train")) == 6, "one image list for every task set"


def test_edges_are_thin_and_only_on_borders(pristine: Path) -> None:
    sample, folder = native(pristine)
    edge, border = sample["targets"]["edges"][0].numpy() == 1, boundaries(context_of(folder))
    assert edge.any() and not (edge & ~border).any()
    squares = ndimage.uniform_filter(edge.astype(float), 2) > 0.99
    assert squares.sum() <= 0.02 * edge.sum(), "two pixels wide only where lines cross"
    near = ndimage.binary_dilation(edge, np.ones((3, 3)), iterations=2)
    assert (near | ~border).mean() > 0.999, "no border is lost"


def test_thinning_keeps_pieces_and_does_not_sum_ids() -> None:
    noise = np.random.default_rng(0).normal(size=(60, 80))
    mask = ndimage.gaussian_filter(noise, 2) > 0
    thinned = thin(mask)
    eight = np.ones((3, 3))
    assert ndimage.label(thinned, eight)[1] == ndimage.label(mask, eight)[1]
    assert np.array_equal(thin(thinned), thinned) and thinned.sum() < 0.5 * mask.sum()
    ramp = np.tile([3, 4, 5], (3, 1))
    assert ndimage.laplace(ramp)[1, 1] == 0 and boundaries(ramp).all()


def test_normals_are_unit_vectors_where_their_class_counts(pristine: Path) -> None:
    sample, folder = native(pristine)
    normals = sample["targets"]["normals"].numpy()
    stored = np.array(Image.open(folder / "normals_distill" / f"{FIRST}.png")) * (2 / 255) - 1
    counts = np.isin(context_of(folder), NORMALS_IDS) & (np.linalg.norm(stored, axis=-1) > 0.5)
    assert 0 < counts.mean() < 1 and np.array_equal(counts, normals[0] != 255)
    assert (normals[:, ~counts] == 255).all()
    assert np.allclose(np.linalg.norm(normals[:, counts], axis=0), 1, atol=1e-5)
    assert np.abs(normals[:, counts].T - stored[counts]).max() < 0.02
    assert len(NORMALS_IDS) == len(set(NORMALS_IDS)) == 170


def test_optional_normals_may_be_absent(root: Path) -> None:
    shutil.rmtree(root / "PASCAL_MT/normals_distill")
    data = Pascal(str(root), size=16, **only(*Pascal.TASKS, optional="normals"))
    assert data.absent_tasks() == {"normals"} and data.missing() == []
    assert set(data.samples("val")[0]["targets"]) >= {"semseg", "saliency", "edges"}
    (fault,) = Pascal(str(root)).missing()
    assert "normals_distill" in fault and "SAMPLE=1" in fault


@pytest.mark.parametrize(
    ("task", "folder"),
    [("parts", "human_parts"), ("edges", "pascal-context"), ("normals", "pascal-context"), ("semseg", "semseg")],
)
def test_an_absent_folder_is_named_once_and_stops_only_its_tasks(root: Path, task: str, folder: str) -> None:
    shutil.rmtree(root / "PASCAL_MT" / folder)
    (fault,) = Pascal(str(root), **only(task, "saliency")).missing()
    assert folder in fault and task in fault and "PASCAL_MT.tgz" in fault and "licence" in fault
    with pytest.raises(DataError, match=folder):
        Pascal(str(root), **only(task)).samples("train")
    assert len(Pascal(str(root), size=16, **only("saliency")).samples("train")) == 6


def test_other_absences(root: Path, tmp_path: Path) -> None:
    assert "no JPEGImages" in Pascal(str(tmp_path / "nowhere")).missing()[0]
    assert "no root given" in Pascal(None).missing()[0]
    (root / "PASCAL_MT/sal_distill" / f"{FIRST}.png").unlink()
    (root / "PASCAL_MT/ImageSets/Context/val.txt").unlink()
    faults = Pascal(str(root)).missing()
    assert len(faults) == 2 and "val.txt" in faults[0] and FIRST in faults[1] and "1 of 6" in faults[1]


def test_all_ways_to_name_the_root(root: Path) -> None:
    expected = Pascal(str(root)).fingerprint()
    assert Pascal(str(root / "PASCAL_MT")).fingerprint() == expected
    (root / "PASCAL_MT").rename(root / "PASCALContext")
    assert Pascal(str(root)).fingerprint() == expected


def test_fingerprint_follows_content_and_tasks_not_place_or_date(root: Path) -> None:
    before, parts_only = Pascal(str(root)).fingerprint(), Pascal(str(root), **only("parts")).fingerprint()
    path = root / "PASCAL_MT/sal_distill" / f"{FIRST}.png"
    os.utime(path, (0, 0))
    moved = root.rename(root.with_name("elsewhere"))
    assert Pascal(str(moved)).fingerprint() == before
    (moved / "PASCAL_MT/sal_distill/stray.png").write_bytes(b"no listed image")
    assert Pascal(str(moved)).fingerprint() == before
    (moved / "PASCAL_MT/sal_distill" / f"{FIRST}.png").write_bytes(b"other")
    assert Pascal(str(moved)).fingerprint() != before
    assert Pascal(str(moved), **only("parts")).fingerprint() == parts_only


def test_the_data_folder_is_never_written(root: Path) -> None:
    before = files_of(root)
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for split in Pascal.SPLITS:
        list(Pascal(str(root), size=32).samples(split))
    assert files_of(root) == before
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "name",
    ["JPEGImages/{}.jpg", "semseg/VOC12/{}.png", "human_parts/{}.mat", "sal_distill/{}.png",
     "pascal-context/trainval/{}.mat", "normals_distill/{}.png"],
)  # fmt: skip
def test_a_truncated_file_is_named(root: Path, name: str) -> None:
    truncate(root / "PASCAL_MT" / name.format(FIRST))
    with pytest.raises(DataError, match=f"{name.format(FIRST)}.*complete.*bytes.*Unpack"):
        native(root)


def test_a_label_of_another_size_or_kind_is_named(root: Path) -> None:
    path = root / "PASCAL_MT/semseg/VOC12" / f"{FIRST}.png"
    stored = np.array(Image.open(path))
    for broken, rule in (
        (palette(stored[1:]), "size of its photograph"),
        (palette(np.where(stored == 0, 21, stored).astype(np.uint8)), "0..20.*21"),
        (Image.fromarray(stored).convert("RGB"), "mode L or P.*RGB"),
    ):
        broken.save(path)
        with pytest.raises(DataError, match=f"{FIRST}.png: .*{rule}"):
            native(root)


def test_a_wrong_context_map_or_part_is_named(root: Path) -> None:
    folder = root / "PASCAL_MT"
    shape = context_of(folder).shape
    one = np.ones(shape, np.uint8)
    save_anno(folder / "human_parts" / f"{FIRST}.mat", [("person", 15, one, [("tail", one)])])
    with pytest.raises(DataError, match=f"{FIRST}.mat.*'tail'"):
        native(root, **only("parts"))
    savemat(folder / "pascal-context/trainval" / f"{FIRST}.mat", {"LabelMap": one * np.uint16(460)})
    with pytest.raises(DataError, match="0..459.*460"):
        native(root, **only("edges"))


@pytest.mark.parametrize(
    "option", [{"size": 0}, {"scale": [1.2, 0.8]}, {"rotation": -1}, {"fill": 7}, {"flip": 2}, {"normals_axes": "up"}]
)
def test_options_out_of_range(option: dict[str, Any]) -> None:
    with pytest.raises(SuiteError, match=f"data.options.{next(iter(option))}"):
        Pascal("x", **option)


def test_augmentation_depends_on_the_generator_alone(pristine: Path) -> None:
    data = Pascal(str(pristine), size=40)
    sample = data.samples("train")[0]
    before = sample["image"].clone()
    a, b, c = (data.augment(sample, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(a["image"], b["image"]) and not torch.equal(a["image"], c["image"])
    assert torch.equal(sample["image"], before), "the kept sample is not changed"


def test_fill_is_ignore_or_background(pristine: Path) -> None:
    turned = {"scale": (0.75, 0.75), "rotation": 0.0, "flip": 0.0, "size": 40}
    for fill in (255, 0):
        data = Pascal(str(pristine), fill=fill, **turned)
        targets = data.augment(data.samples("train")[0], np.random.default_rng(0))["targets"]
        assert {name: float(t[..., 0, 0].flatten()[0]) for name, t in targets.items()} == {
            "semseg": fill,
            "parts": fill,
            "saliency": fill,
            "edges": fill,
            "normals": 255,
        }


def test_a_flip_mirrors_exactly(pristine: Path) -> None:
    data = Pascal(str(pristine), size=40, flip=1.0, scale=(1, 1), rotation=0)
    sample = data.samples("train")[0]
    flipped = data.augment(sample, np.random.default_rng(0))
    assert torch.equal(flipped["image"], sample["image"].flip(-1))
    expected = {name: target.flip(-1) for name, target in sample["targets"].items()}
    valid = expected["normals"][0] != 255
    expected["normals"][0, valid] *= -1
    assert all(torch.equal(flipped["targets"][name], expected[name]) for name in expected)


def test_a_positive_angle_turns_counter_clockwise_and_a_scale_enlarges() -> None:
    picture = np.zeros((41, 41), np.uint8)
    picture[5, 20] = 1  # at twelve o'clock
    assert Warp.about_centre(41, 41, angle=90).nearest(picture, 255)[20, 5] == 1, "nine o'clock"
    spot = np.zeros((41, 41), np.uint8)
    spot[18:23, 18:23] = 1
    assert Warp.about_centre(41, 41, scale=2).nearest(spot, 255).sum() == 100


def test_stretched_images_turn_like_the_photograph() -> None:
    """A photograph twice as high as wide, stretched to a square: its diagonal must turn by the true angle."""
    tall = np.zeros((201, 101), np.uint8)
    tall[100, 90] = 1  # 40 pixels to the right of the centre
    up = np.argwhere(Warp.about_centre(201, 101, angle=90, aspect=201 / 101).nearest(tall, 0))[0]
    assert up.tolist() == [60, 50]
    square = np.zeros((101, 101), np.uint8)
    square[50, 90] = 1
    turned = Warp.about_centre(101, 101, angle=90, aspect=201 / 101).nearest(square, 0)
    assert np.abs(np.argwhere(turned) - [30, 50]).max() <= 1


def plane(slope: tuple[float, float], size: int) -> np.ndarray:
    """Returns the depth of a tilted plane, (size, size); slope to the right and upwards, per pixel."""
    x = np.arange(size) - (size - 1) / 2
    return (5 - slope[0] * x[None, :] + slope[1] * x[:, None]).astype(np.float32)


def normals_from(depth: np.ndarray, axes: str) -> np.ndarray:
    """Returns the normals of a height field nearer = smaller depth, by finite differences, in the given axes."""
    down, right = np.gradient(-depth)
    vectors = np.stack([-right, down, np.ones_like(depth)])  # (right, up, to the camera)
    vectors /= np.linalg.norm(vectors, axis=0)
    side, rise = axes.split("-")
    sign = (1 if side == "right" else -1, 1 if rise == "up" else -1, 1)
    return (vectors * np.array(sign)[:, None, None]).astype(np.float32)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("angle", [-20.0, 7.0, 20.0])
def test_normals_turn_with_the_surface(axes: str, flip: bool, angle: float) -> None:
    """Turning the normals must give the normals of the turned surface."""
    size = 65
    warp = Warp.about_centre(size, size, flip=flip, angle=angle)
    turned = ndimage.affine_transform(plane((0.3, 0.8), size), *_depth_matrix(warp, size), order=1, mode="nearest")
    expected = normals_from(turned, axes)[:, size // 2, size // 2]
    found = warp.turn(normals_from(plane((0.3, 0.8), size), axes), axes)[:, size // 2, size // 2]
    assert np.allclose(found, expected, atol=1e-3)


def _depth_matrix(warp: Warp, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the warp in scipy's terms: (row, column) of pixel centres."""
    a, b, c, d, e, f = warp.matrix
    matrix = np.array([[e, d], [b, a]])
    offset = np.array([f + (d + e - 1) / 2, c + (a + b - 1) / 2])
    return matrix, offset


def test_ignored_normals_stay_ignored() -> None:
    normals = normals_from(plane((0.3, 0.8), 9), "left-up")
    normals[:, 4] = 255
    flipped = Warp.about_centre(9, 9, flip=True).normals(normals, "left-up")
    assert (flipped[:, 4] == 255).all() and np.array_equal(flipped[:, 0], normals[:, 0, ::-1] * [[-1], [1], [1]])
    turned = Warp.about_centre(9, 9, flip=True, angle=20).normals(normals, "left-up", Image.Resampling.BICUBIC)
    valid = turned[0] != 255
    assert 0 < valid.mean() < 1 and np.allclose(np.linalg.norm(turned[:, valid], axis=0), 1, atol=1e-6)
