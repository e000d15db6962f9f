"""Images, checkpoints and extracted networks of others: a message, never a traceback or code of theirs."""

from __future__ import annotations

import hashlib
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import mtlbench as package
from mtlbench.errors import ExitCode, StoreError
from mtlbench.runs.seal import sealed
from mtlbench.runs.store import read_json, write_json
from mtlbench.training import checkpoint
from tests.support.command_line import SMALL, mtlbench
from tests.support.forge import reseal


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on images of 24 x 32 pixels."""
    folder = tmp_path_factory.mktemp("run")
    answer = mtlbench(folder, "run", "digits", "--method", "uniform", *SMALL, "trainer.steps=1")
    assert answer.code == ExitCode.DONE, answer.text
    (result,) = folder.glob("results/digits/*/result.json")
    return result.parent


def bomb(path: Path) -> Path:
    """Writes a PNG of a few bytes that claims 40,000 x 40,000 pixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    chunks = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def test_images_that_cannot_be_read_are_named(run: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "flipped.png").write_bytes(whole.read_bytes()[:100] + bytes(200) + whole.read_bytes()[300:])
    (tmp_path / "text.png").write_text("no image")
    bomb(tmp_path / "bomb.png")
    for name in ("cut.png", "flipped.png", "text.png", "bomb.png", "absent.png", "."):
        answer = mtlbench(tmp_path, "predict", str(run), name)
        rule = "An input must be a file" if name in ("absent.png", ".") else "cannot be read as one"
        assert answer.code == ExitCode.REFUSED and rule in answer.text and name in answer.text, answer.text
        assert "Traceback" not in answer.text


SIZES = [(1, 1), (3, 700), (31, 17)]
MODES = ["RGB", "L", "P", "RGBA", "I;16", "1"]


@pytest.mark.parametrize(("size", "mode"), [*((size, "RGB") for size in SIZES), *(((24, 20), mode) for mode in MODES)])
def test_an_image_of_any_size_and_kind_is_drawn(run: Path, size: tuple[int, int], mode: str, tmp_path: Path) -> None:
    Image.new(mode, size).save(tmp_path / "a.png")
    answer = mtlbench(tmp_path, "predict", str(run), "a.png", "--arrays")
    assert answer.code == ExitCode.DONE, answer.text
    with np.load(tmp_path / "predictions/a.npz") as arrays:
        assert arrays["segments"].shape == size[::-1]


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "run")


@pytest.mark.parametrize(
    "content", ["pickle", "torch", "text", "empty", "list", "no weights", "numbers", "other weights"]
)
def test_a_hostile_checkpoint_with_a_right_hash_runs_nothing(content: str, run: Path, tmp_path: Path) -> None:
    target, weights = tmp_path / "attacked", run / "final.ckpt"
    good, digest = weights.read_bytes(), weights.with_name("final.ckpt.sha256").read_text()
    if content in ("pickle", "text", "empty"):
        weights.write_bytes({"pickle": pickle.dumps(Attack(target)), "text": b"no weights", "empty": b""}[content])
    else:
        found: Any = {
            "torch": {"state_dict": {"a": Attack(target)}},
            "list": [1],
            "no weights": {"a": 1},
            "numbers": {"state_dict": {"a": 1}},
            "other weights": {"state_dict": {"a": torch.ones(1)}},
        }[content]
        torch.save(found, weights)
    weights.with_name("final.ckpt.sha256").write_text(hashlib.sha256(weights.read_bytes()).hexdigest())
    result = (run / "result.json").read_text()
    reseal(run, lambda record: record["files"].update(sealed({}, run, ["final.ckpt"])["files"]))
    Image.new("RGB", (24, 20)).save(tmp_path / "a.png")
    try:
        answer = mtlbench(tmp_path, "predict", str(run), "a.png")
        assert answer.code == ExitCode.REFUSED and "final.ckpt" in answer.text or "Weights must fit" in answer.text
        assert "Traceback" not in answer.text and not target.exists()
        if content != "empty":
            with pytest.raises(StoreError):
                package.load_run(run)
    finally:
        weights.write_bytes(good)
        weights.with_name("final.ckpt.sha256").write_text(digest)
        (run / "result.json").write_text(result)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "0"},
        {"model": []},
        {"tasks": ["left"]},
        {"model": {}},
        {"trainer": {}},
        {"method": {}},
        {"tasks": {"left": {}}},
        {"method": {"path": 5, "arguments": {}}},
        {"method": {"path": "uniform", "arguments": {"x": 1}}},
        {"data": {"module": "data_modules.digits:Digits", "options": {"nonsense": 1}}},
    ],
    ids=str,
)
def test_an_edited_specification_is_named(change: dict[str, Any], run: Path, tmp_path: Path) -> None:
    Image.new("RGB", (24, 20)).save(tmp_path / "a.png")
    good = (run / "spec.json").read_text()
    try:
        write_json(run / "spec.json", {**(read_json(run / "spec.json") or {}), **change})
        answer = mtlbench(tmp_path, "predict", str(run), "a.png")
        assert answer.code == ExitCode.REFUSED and "Traceback" not in answer.text, answer.text
    finally:
        (run / "spec.json").write_text(good)


@pytest.mark.parametrize(
    "description",
    [
        "[]", "5", "null", "{", '{"format": 1}', '{"format": 2}', "\x00", "[" * 9999, "9" * 5000,
        '{"format": 1, "task": 5, "dense": "x", "channels": "y", "options": {}, "model": {}, "kept": {}}',
        '{"format": 1, "task": "a", "dense": true, "channels": 1, "options": {"init": "copy"}, "model": []}',
        '{"format": 1, "task": ["a"], "dense": true, "channels": 1, "options": 5, "model": {}, "kept": {}}',
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_an_extracted_network_with_a_wrong_description_is_named(description: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text(description)
    with pytest.raises(StoreError, match="holds matching files"):
        package.load_extracted(tmp_path)


def test_options_that_load_other_weights_are_refused(tmp_path: Path) -> None:
    answer = mtlbench(tmp_path, "bench", "digits", "model.encoder_options.checkpoint_path=w.pth", "--dry")
    assert answer.code == ExitCode.REFUSED and "checkpoint_path" in answer.text, answer.text


def test_a_checkpoint_of_plain_values_is_read(tmp_path: Path) -> None:
    checkpoint.save({"step": 3, "state_dict": {"a": torch.ones(2)}}, tmp_path / "a.ckpt")
    assert checkpoint.verified(tmp_path / "a.ckpt")["step"] == 3
