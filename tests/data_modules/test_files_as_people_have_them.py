"""Files as people have them: other endings, hidden files, encodings of lists, number types, deep pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtlbench import registry
from mtlbench.data_modules import nyud
from mtlbench.data_modules.dense import decoding, numbered_files
from mtlbench.data_modules.dense.files import read_list
from mtlbench.data_modules.miniatures import write_nyud
from mtlbench.data_modules.nyud import Nyud
from mtlbench.data_modules.nyuv2 import NYUv2
from mtlbench.errors import DataError, SuiteError


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf1449\nb c\n",
        "1449\nb c\n".encode("utf-16"),
        b"1449\r\n\r\nb c\r\n",
        b"# ids\n1449 1\nb c # two\n",
    ],
)
def test_lists_are_read_as_they_are_meant(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    assert read_list(tmp_path / "list.txt") == ["1449", "b c"]


def test_a_flag_that_leaves_an_image_out_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("é 1\nb -1\n".encode("latin-1"))
    with pytest.raises(DataError, match="list.txt, line 2.*'b -1'"):
        read_list(tmp_path / "list.txt")


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
