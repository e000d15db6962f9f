"""A dense kind of a user's own, optical flow, works everywhere: augmentation, cache, training, `predict`, the page."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtlbench import registry
from mtlbench.data_modules.dense import cache
from mtlbench.report.figures.gallery import exhibits
from mtlbench.report.reader import read_input
from tests.support.command_line import mtlbench

ALLOW = "--allow=test_own_kind_module"
SUITE = """\
name: flow
version: 1
title: Optical flow
data: {module: "test_own_kind_module:Flying", root: pictures}
model:
  encoder: vit_tiny_patch16_224
  encoder_options: {embed_dim: 16, depth: 2, num_heads: 2, patch_size: 8}
  image_size: [32, 32]
  decoder_channels: 8
optimiser: {name: adam, lr: 0.001}
trainer: {steps: 2, batch_size: 2, workers: 0, examples: 2}
tasks: {flow: {}, grey: {}}
floor: false
methods: [uniform]
baseline: uniform
seeds: [0]
"""

MODULE = '''\
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from mtlbench.data_modules.dense import DenseData, Files
from mtlbench.data_modules.dense.recipes import AboutCentre
from mtlbench.metrics import MapError
from mtlbench.tasks import IGNORE, Task
from mtlbench.tasks.taskonomy import ValueMap
from PIL import Image


@dataclass(frozen=True)
class Flow(Task):
    """Optical flow in pixels, (right, down). Target: float32 (B, 2, H, W), 255 = ignore."""

    kind: ClassVar[str] = "optical_flow"

    @property
    def channels(self):
        return 2

    def valid(self, target):
        return target[:, 0] != IGNORE

    def loss(self, prediction, target):
        valid = self.valid(target)
        return torch.where(valid, (prediction - target).abs().mean(1), 0.0).sum()

    def metric(self):
        return MapError(ignore=IGNORE)

    def blank(self, height, width):
        return torch.full((2, height, width), float(IGNORE))

    def draw(self, value, truth=None):
        picture = np.full((*value.shape[1:], 3), 7, np.uint8)
        picture[..., 0] = np.where(value[0] > 0, 200, 100)
        return picture

    def warp(self, target, geometry, options):
        moved = geometry.nearest(target, IGNORE)
        valid = moved[0] != IGNORE
        turned = geometry.turn(moved, options.axes) * np.float32(geometry.scale)
        return np.where(valid, turned, np.float32(IGNORE))

    def store(self, label):
        return label.astype(np.float16)

    def fault(self, target):
        bad = (target.abs() > 100) & (target != IGNORE)
        return f"flow stays below 100 pixels. Found {target[bad][0]:g}" if bad.any() else None


class Pictures(Files):
    TITLE, REMEDY = "Flying pictures", "Draw some."
    NEEDS = {"flow": ("flow",), "grey": ()}

    def recognise(self, folder):
        return (folder / "image").is_dir()

    def sought(self):
        return "image/"

    def read_ids(self, split):
        return [f"{split}{number}" for number in range(4)]

    def candidates(self, kind, image):
        return [f"{kind}/{image}.{'png' if kind == 'image' else 'npy'}"]

    def places(self, kind):
        return [kind]


class Flying(DenseData):
    FILES, AXES = Pictures, "right-down"
    RECIPES = {"mirrored": AboutCentre(size=(32, 32), flip=1.0)}
    TASKS = {"flow": Flow("flow"), "grey": ValueMap("grey")}

    def decode(self, image, tasks):
        pixels = np.array(Image.open(self.files.path("image", image)))
        made = {"flow": lambda: np.load(self.files.path("flow", image)), "grey": lambda: pixels.mean(-1) / 255}
        return pixels, {task: made[task]() for task in tasks}
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a module with a kind of its own, a suite, and eight pictures whose flow is (column, 3)."""
    place = tmp_path_factory.mktemp("own")
    (place / "test_own_kind_module.py").write_text(MODULE)
    (place / "flow.yaml").write_text(SUITE)
    for kind in ("image", "flow"):
        (place / "pictures" / kind).mkdir(parents=True)
    flow = np.stack([np.tile(np.arange(1.0, 33), (32, 1)), np.full((32, 32), 3.0)], -1)
    flow[:4] = 255
    for name in (f"{split}{number}" for split in ("train", "val") for number in range(4)):
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "pictures" / "image" / f"{name}.png")
        np.save(place / "pictures" / "flow" / f"{name}.npy", flow)
    return place


def test_flow_is_mirrored_and_kept_in_half_precision(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path / "cache"))
    data = registry.load("test_own_kind_module:Flying")("pictures")
    sample = data.samples("train")[0]
    mirrored = data.augment(sample, np.random.default_rng(0))["targets"]["flow"].numpy()
    before = sample["targets"]["flow"].numpy()
    assert (before[0, 4:] == np.arange(1, 33)).all() and (before[:, :4] == 255).all()
    assert (mirrored[0, 4:] == -np.arange(32, 0, -1)).all() and (mirrored[1, 4:] == 3).all()
    assert (mirrored[:, :4] == 255).all()
    (stored,) = (tmp_path / "cache").glob("flying-train-*")
    assert cache.Cached(stored)[0].labels["flow"].dtype == np.float16


def test_a_value_out_of_range_names_image_task_and_rule(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "copy")
    flow = np.load(place / "pictures/flow/val1.npy")
    flow[9, 9] = 300
    np.save(place / "pictures/flow/val1.npy", flow)
    answer = mtlbench(place, "data", "flow.yaml", "data.options.recipe=mirrored", "--verify")
    assert answer.code == 2 and "val1: flow: flow stays below 100 pixels. Found 300." in answer.text


def test_a_run_is_trained_drawn_and_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLBENCH_CACHE", "off")
    answer = mtlbench(folder, "bench", "flow.yaml")
    assert answer.code == 0, answer.text
    (result,) = (folder / "results").glob("flow/uniform-s0-*/result.json")
    examples = np.load(result.parent / "examples.npz")
    assert examples["shown/target/flow"].shape == (2, 32, 32, 3) and (examples["shown/target/flow"][..., 1] == 7).all()

    answer = mtlbench(
        folder,
        "predict",
        ALLOW,
        str(result.parent),
        "pictures/image/val0.png",
        "--out",
        "drawn",
    )
    assert answer.code == 0, answer.text
    sheet = np.asarray(Image.open(folder / "drawn" / "val0.png"))
    assert ((sheet[..., 1] == 7) & np.isin(sheet[..., 0], (100, 200))).sum() >= 32 * 32

    shutil.copy(folder / "pictures/image/val0.png", folder / "val0.png")
    mtlbench(
        folder,
        "predict",
        ALLOW,
        str(result.parent),
        "pictures/image/val1.png",
        "val0.png",
        "pictures/image/val0.png",
    )
    assert {path.name for path in (folder / "predictions").iterdir()} == {"val0.png", "val0-2.png", "val1.png"}

    study = read_input(folder / "results" / "flow")
    shown = exhibits(study, ["uniform"], [result.parent.name])
    assert all(
        tile.source.startswith(("data:image/png", "data:image/webp"))
        for tile in shown[0].rows["flow"] + shown[0].rows["grey"]
    )
