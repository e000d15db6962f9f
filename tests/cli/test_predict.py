"""`mtlbench predict`: EXIF orientation, and arrays at the photograph's own size."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mtlbench.cli import predict
from mtlbench.cli.stored import needs_images
from mtlbench.errors import DataError, MethodError
from mtlbench.tasks import Classification, Depth, Detection, Normals, Regression, SemanticSegmentation

TASKS = {"seg": SemanticSegmentation("seg", classes=3), "normals": Normals("normals"), "depth": Depth("depth")}


class Brightness:
    """Predicts from the red channel alone, so that a turned photograph gives a turned answer."""

    tasks = TASKS

    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        red = image[:, :1].float() / 255
        return {"seg": torch.cat([red, 1 - red, red * 0], 1), "normals": red.repeat(1, 3, 1, 1) + 1, "depth": red}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    run = SimpleNamespace(method=Brightness(), spec=SimpleNamespace(model={"image_size": (8, 8)}))
    monkeypatch.setattr("mtlbench.training.load.load_run", lambda folder, allow: run)
    monkeypatch.setattr(predict, "finished_run", lambda folder: None)

    def call(image: Path, **changes: Any) -> Path:
        options = {"run_folder": "r", "images": [str(image)], "out": str(tmp_path / "out"), "arrays": True, "allow": []}
        assert predict.run(argparse.Namespace(**(options | changes))) == 0
        return tmp_path / "out"

    return call


def test_arrays_have_the_size_of_the_photograph_and_the_form_of_targets(tmp_path: Path, write: Any) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    out = write(tmp_path / "a.png")
    with np.load(out / "a.npz") as arrays:
        assert {name: arrays[name].shape for name in arrays} == {
            "seg": (20, 30),
            "normals": (3, 20, 30),
            "depth": (1, 20, 30),
        }
        assert set(np.unique(arrays["seg"])) == {0, 1} and (arrays["seg"][:8] == 0).all()
        assert np.allclose(np.linalg.norm(arrays["normals"], axis=0), 1)
    (out / "a.npz").unlink()
    write(tmp_path / "a.png", arrays=False)
    assert not (out / "a.npz").exists()


def test_boxes_are_drawn_on_the_image_and_stored_in_pixels_of_the_photograph(
    tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Detection("boxes", classes=1, most=2, stride=2)
    raw = torch.full((1, 5, 8, 8), -20.0)
    raw[:, 0, 2:4, 4:6] = 20.0  # The cell in column 2 and row 1: its corner is the centre of the box.
    raw[:, 1:3], raw[:, 3:] = 2.0, 0.0
    monkeypatch.setattr(Brightness, "tasks", {"boxes": task})
    monkeypatch.setattr(Brightness, "__call__", lambda self, image: {"boxes": raw})
    Image.fromarray(np.full((16, 24, 3), 40, np.uint8)).save(tmp_path / "a.png")
    out = write(tmp_path / "a.png")
    with np.load(out / "a.npz") as arrays:
        assert arrays["boxes"].shape == (2, 6)
        assert np.allclose(arrays["boxes"][0], [6, 0, 18, 8, 1, 0])  # 2..6 x 0..4 of 8 x 8 pixels
    sheet = np.asarray(Image.open(out / "a.png"))
    left, right = np.split(sheet[-12:-4, -2 * (sheet.shape[1] // 2) :], 2, 1)
    assert (left == 40).all(-1).sum() == 64 and (right == 40).all(-1).sum() == 64 - 12


def test_photographs_of_one_name_do_not_overwrite_each_other(tmp_path: Path, write: Any) -> None:
    images = []
    for folder, value in (("dark", 0), ("light", 255), ("dark again", 0)):
        (tmp_path / folder).mkdir()
        images.append(str(tmp_path / folder / "a.png"))
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(images[-1])
    out = write(tmp_path, images=images)
    assert {path.name for path in out.iterdir()} == {f"a{n}.{end}" for n in ("", "-2", "-3") for end in ("png", "npz")}
    found = [np.load(out / f"a{n}.npz")["depth"].mean() for n in ("", "-2", "-3")]
    assert found[0] == found[2] != found[1]


def test_the_orientation_of_a_camera_is_applied(tmp_path: Path, write: Any) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright: the left half is then above
    Image.fromarray(pixels).save(tmp_path / "b.png", exif=exif)
    with np.load(write(tmp_path / "b.png") / "b.npz") as arrays:
        assert arrays["seg"].shape == (32, 16)
        assert (arrays["seg"][:12] == 0).all() and (arrays["seg"][20:] == 1).all()


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff\xe1\x00\x10Exif"]
)
def test_what_is_no_image_is_named(tmp_path: Path, write: Any, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"predicts images. .*a.png cannot be read as one: "):
        write(tmp_path / "a.png")


def test_a_damaged_image_is_named(tmp_path: Path, write: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[60] ^= 255  # the checksum no longer fits: Pillow raises a SyntaxError
    content[20] ^= 255
    (tmp_path / "a.png").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"a.png cannot be read as one: "):
        write(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_images_of_any_size(tmp_path: Path, write: Any, size: tuple[int, int]) -> None:
    Image.fromarray(np.full((*size, 3), 255, np.uint8)).save(tmp_path / "a.png")
    with np.load(write(tmp_path / "a.png") / "a.npz") as arrays:
        assert arrays["seg"].shape == size and (arrays["seg"] == 0).all()


class Sums:
    """Predicts the sum of a row, and that sum as one of two classes."""

    tasks = {"total": Regression("total"), "sign": Classification("sign", classes=2)}

    def __call__(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        total = rows.sum(1, keepdim=True)
        return {"total": total, "sign": torch.cat([-total, total], 1)}


def test_rows_of_a_table_become_rows_of_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"a": [1.5, 1.0], "b": [-2.0, 0.0]}
    rows = [{"inputs": torch.tensor(row), "targets": {}, "id": name} for name, row in numbers.items()]
    data = SimpleNamespace(read=lambda path: rows)
    run = SimpleNamespace(method=Sums(), data=data, spec=SimpleNamespace(model={"encoder": "mlp:plain"}))
    monkeypatch.setattr("mtlbench.training.load.load_run", lambda folder, allow: run)
    monkeypatch.setattr(predict, "finished_run", lambda folder: None)
    (tmp_path / "new.csv").write_text("x,y\n")
    words = {
        "run_folder": "r",
        "images": [str(tmp_path / "new.csv")],
        "out": str(tmp_path),
        "arrays": True,
        "allow": [],
    }
    assert predict.run(argparse.Namespace(**words)) == 0 and predict.run(argparse.Namespace(**words)) == 0
    assert (tmp_path / "new.csv").read_text() == "x,y\n", "the file of the user is not overwritten"
    assert (tmp_path / "new-2.csv").read_text().splitlines() == ["id,total,sign", "a,2.5,1", "b,-2.0,0"]
    with np.load(tmp_path / "new-2.npz") as arrays:
        assert arrays["total"].tolist() == [2.5, -2.0] and arrays["sign"].tolist() == [1, 0]


def test_what_needs_images_says_so() -> None:
    spec: Any = SimpleNamespace(run_id="uniform-s0", model={"encoder": "mlp:plain"})
    with pytest.raises(MethodError, match="Export needs a run on images. uniform-s0 has the encoder mlp:plain"):
        needs_images(spec, "Export")
    needs_images(SimpleNamespace(model={"image_size": [8, 8]}), "Export")  # type: ignore[arg-type]
