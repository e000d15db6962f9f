"""Files as people have them: other endings, hidden files, encodings of lists, number types, deep pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtlbench import registry
from mtlbench.data_modules import nyud
from mtlbench.data_modules.cityscapes import Cityscapes
from mtlbench.data_modules.dense import decoding, numbered_files
from mtlbench.data_modules.miniatures import write_cityscapes, write_nyud, write_nyuv2, write_pascal, write_taskonomy
from mtlbench.data_modules.nyud import Nyud
from mtlbench.data_modules.nyuv2 import NYUv2
from mtlbench.data_modules.pascal import Pascal
from mtlbench.data_modules.taskonomy import Taskonomy
from mtlbench.errors import DataError, SuiteError


def test_other_endings_hidden_files_and_what_lies_near(tmp_path: Path) -> None:
    root = write_nyud(tmp_path, train=2, val=1)
    data = Nyud(str(root), size=[24, 32])
    before, base = data.fingerprint(), data.files.base()
    image = data.files.ids("train")[0]
    photo = data.files.path("image", image)
    (photo.parent / f"._{photo.name}").write_bytes(b"junk")
    assert Nyud(str(root), size=[24, 32]).fingerprint() == before and base.is_dir()
    photo.rename(photo.with_suffix(photo.suffix.upper()))
    again = Nyud(str(root), size=[24, 32])
    assert not again.missing() and len(again.originals("train")[0]["targets"]) == 4
    photo.with_suffix(photo.suffix.upper()).rename(photo.with_name(f"x{photo.name}"))
    with pytest.raises(DataError, match=f"Near {photo.name} lies x{photo.name}"):
        Nyud(str(root), size=[24, 32]).files.path("image", image)


def renamed(folder: Path, change: Any) -> None:
    for path in [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".png", ".npy", ".jpg")]:
        path.rename(path.with_name(change(path.name)))


@pytest.mark.parametrize(
    ("module", "write"),
    [(NYUv2, write_nyuv2), (Taskonomy, write_taskonomy), (Nyud, write_nyud), (Pascal, write_pascal)],
)
def test_endings_in_capitals_everywhere(tmp_path: Path, module: Any, write: Any) -> None:
    root = write(tmp_path, train=2, val=1)
    before = module(str(root), size=[24, 32])
    ids = {split: before.files.ids(split) for split in before.SPLITS}
    sample = before.originals("train")[1]
    renamed(root, lambda name: f"{name.rpartition('.')[0]}.{name.rpartition('.')[2].upper()}")
    after = module(str(root), size=[24, 32])
    assert {split: after.files.ids(split) for split in after.SPLITS} == ids and not after.missing()
    again = after.originals("train")[1]
    assert again["image"].equal(sample["image"]) and again["targets"].keys() == sample["targets"].keys()
    assert all(again["targets"][name].equal(target) for name, target in sample["targets"].items())


@pytest.mark.parametrize("layout", ["official", "npy", "png"])
def test_endings_in_capitals_in_cityscapes(tmp_path: Path, layout: str) -> None:
    root = write_cityscapes(tmp_path, train=3, val=1, layout=layout)
    ids = Cityscapes(str(root)).files.ids("train")
    renamed(root, lambda name: f"{name.rpartition('.')[0]}.{name.rpartition('.')[2].upper()}")
    data = Cityscapes(str(root), size=[16, 32])
    assert data.files.ids("train") == ids and len(data.originals("train")[2]["targets"]) == 2


def test_a_photograph_in_another_format_is_found_but_no_label(tmp_path: Path) -> None:
    root = write_pascal(tmp_path, train=2, val=1)
    data = Pascal(str(root), size=32)
    image = data.files.ids("train")[0]
    photo, label = data.files.path("image", image), data.files.path("saliency", image)
    pixels = decoding.photo(photo)
    Image.fromarray(pixels).save(photo.with_suffix(".TIFF"))
    photo.unlink()
    data = Pascal(str(root), size=32)
    assert not data.missing() and np.array_equal(decoding.photo(data.files.path("image", image)), pixels)
    label.rename(label.with_suffix(".jpg"))
    with pytest.raises(DataError, match=rf"{image}.png.*Near {image}.png lies {image}.jpg"):
        Pascal(str(root), size=32).files.path("saliency", image)


def test_accents_of_other_systems_are_the_same(tmp_path: Path) -> None:
    root = write_nyud(tmp_path, train=2, val=1)
    composed, apart = "caf\u00e9", "cafe\u0301"
    (root / "NYUD_MT" / "gt_sets" / "train.txt").write_text(f"{composed}\n0002\n", encoding="utf-8")
    renamed(root, lambda name: name.replace("0001", apart))
    data = Nyud(str(root), size=[24, 32])
    assert not data.missing() and data.originals("train")[0]["id"] == composed


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.int64])
def test_normals_of_any_number_type(tmp_path: Path, dtype: type) -> None:
    decoding.check_unit(tmp_path / "n.npy", np.broadcast_to(np.array([0, 0, 1], dtype), (4, 5, 3)))


def test_strings_and_wrong_ranks_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.array(["a"]))
    with pytest.raises(DataError, match="s.npy.*numbers"):
        decoding.npy(tmp_path / "s.npy")
    with pytest.raises(DataError, match=r"n.npy.*\(4, 5\)"):
        decoding.check_unit(tmp_path / "n.npy", np.ones((4, 5)))


def test_deep_grey_pictures_are_scaled_by_their_range(tmp_path: Path) -> None:
    for name, array, expected in (
        ("a.png", np.full((2, 3), 30000, np.uint16), 117),
        ("b.tiff", np.full((2, 3), 0.5, np.float32), 128),
    ):
        Image.fromarray(array).save(tmp_path / name)
        assert (decoding.photo(tmp_path / name) == expected).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_float_picture_with_holes_keeps_its_range(tmp_path: Path, value: float) -> None:
    levels = np.array([[0.5, value, 0.25]], np.float32)
    Image.fromarray(levels).save(tmp_path / "a.tiff")
    hole = 255 if value == np.inf else 0
    assert decoding.photo(tmp_path / "a.tiff")[0, :, 0].tolist() == [128, hole, 64]


@pytest.mark.parametrize(
    ("mode", "name"), [("CMYK", "a.jpg"), ("P", "a.png"), ("RGBA", "a.png"), ("LA", "a.png"), ("1", "a.png")]
)
def test_photographs_of_other_modes_are_converted_by_pillow(tmp_path: Path, mode: str, name: str) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, 3:] = 255
    Image.fromarray(pixels).convert(mode).save(tmp_path / name)
    found = decoding.photo(tmp_path / name)
    assert found.dtype == np.uint8 and np.abs(found.astype(int) - pixels).max() <= 8, "JPEG's loss"


def test_the_recipe_has_one_name_in_suites_and_the_old_one_in_identities() -> None:
    options = {"size": [48, 64], "recipe": "invpt"}
    stored = Nyud.identity_options(options)
    assert stored == {"size": [48, 64], "protocol": "invpt"} and Nyud.stored_options(stored) == options
    with pytest.raises(SuiteError, match="data.options.recipe instead of data.options.protocol"):
        Nyud(None, protocol="invpt")


def test_miniatures_are_a_hook_of_the_data_module(tmp_path: Path) -> None:
    assert not Nyud(str(Nyud.miniature(tmp_path))).missing()
    with pytest.raises(DataError, match="Digits has none"):
        registry.load("data_modules.digits:Digits").miniature(tmp_path)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.uint8])
def test_depth_and_masks_of_any_number_type(tmp_path: Path, dtype: type) -> None:
    stored = np.array([[0, 1], [1, 0]], dtype)
    for read in (nyud.depth, nyud.edges):
        np.save(tmp_path / "a.npy", stored)
        found = read(tmp_path / "a.npy", (2, 2))
        assert np.array_equal(found, [[0, 1], [1, 0]])


@pytest.mark.parametrize("stored", [np.eye(4, dtype=np.uint8), np.eye(4, dtype=np.uint8) * 255, np.eye(4, dtype=bool)])
def test_edge_pictures_of_0_and_1_and_of_0_and_255_are_the_same(tmp_path: Path, stored: np.ndarray) -> None:
    Image.fromarray(stored).save(tmp_path / "e.png")
    assert np.array_equal(nyud.edges(tmp_path / "e.png", (4, 4)), np.eye(4))
    Image.fromarray(~stored if stored.dtype == bool else stored.max() - stored).save(tmp_path / "e.png")
    with pytest.raises(DataError, match="e.png.*75% edge pixels: the map is inverted"):
        nyud.edges(tmp_path / "e.png", (4, 4))


def test_whole_numbers_only_where_classes_are_stored(tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", np.array([[0.0, 1.5], [0, 0]]))
    with pytest.raises(DataError, match="c.npy.*1.5"):
        numbered_files.classes(tmp_path / "c.npy", 7, (2, 2))


def test_dead_links_and_hidden_folders_end_no_run(tmp_path: Path) -> None:
    root = write_nyud(tmp_path, train=2, val=1)
    base = Nyud(str(root), size=[24, 32]).files.base()
    (base / "images" / "dead.jpg").symlink_to("nowhere")
    (base / "gt_sets" / "dead.txt").symlink_to("nowhere")
    (root / "dead").symlink_to("nowhere")
    (root / ".Trash" / "NYUD_MT" / "gt_sets").mkdir(parents=True)
    data = Nyud(str(root), size=[24, 32])
    assert data.files.base() == base and not data.missing() and len(data.originals("train")) == 2
    image = data.files.path("image", data.files.ids("train")[0])
    image.unlink()
    image.symlink_to("nowhere")
    with pytest.raises(DataError, match=f"{image.name}.*the file is gone"):
        Nyud(str(root), size=[24, 32]).originals("train")[0]


def test_hidden_files_are_no_numbered_samples(tmp_path: Path) -> None:
    root = NYUv2.miniature(tmp_path)
    data = NYUv2(str(root))
    folder = data.files.base() / "train" / "image"
    before = data.files.ids("train")
    (folder / "._0.npy").write_bytes(b"junk")
    assert NYUv2(str(root)).files.ids("train") == before
    for path in folder.glob("[!.]*"):
        path.unlink()
    assert NYUv2(str(root)).files.folder is None
