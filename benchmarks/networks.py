"""Networks and batches that the benchmarks of surgery share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device

from benchmarks.pairs import DEVICE
from mtlbench.data import Batch, Collate
from mtlbench.data_modules.scenes import Scenes
from mtlbench.method import DEFAULT_OPTIMISER, MethodSpec, MTLMethod
from mtlbench.tasks import Depth, Task
from mtlbench.training.build import build_method

SMALL_VIT = {"patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}
FIVE = ("semseg", "parts", "saliency", "normals", "edges")


@dataclass(frozen=True)
class Case:
    """A network, its tasks, and a batch of rendered scenes."""

    title: str
    size: int
    pixels: int
    tasks: dict[str, Task]
    encoder: str
    options: dict[str, Any]
    precision: str = "32-true"

    @cached_property
    def _batch(self) -> Batch:
        data = Scenes(size=self.pixels, train=self.size, val=1, test=1)
        samples = [data.samples("train")[i] for i in range(self.size)]
        for sample in samples:
            copies = {name: sample["targets"]["depth"] for name in self.tasks if name not in Scenes.TASKS}
            sample["targets"] |= copies
        return move_data_to_device(Collate(self.tasks)(samples), DEVICE)

    def batch(self) -> Batch:
        """Returns the batch on the device, in which tasks that scenes do not have are copies of depth."""
        return self._batch

    def autocast(self) -> torch.autocast:
        """Returns the context in which a bare step runs its forward pass."""
        return torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    def method(self, name: str, **changes: Any) -> MTLMethod:
        """Returns a method on this network, built."""
        model = {
            "encoder": self.encoder,
            "encoder_options": self.options,
            "image_size": [self.pixels, self.pixels],
            "decoder_channels": 48,
        }
        spec = MethodSpec(self.tasks, model, dict(DEFAULT_OPTIMISER), 10**6, 1000)
        method = build_method({"path": name, "arguments": {}}, replace(spec, **changes))
        method.configure_model()
        return method


def named(*names: str) -> dict[str, Task]:
    return {name: Scenes.TASKS[name] for name in names}


CASES = {
    "vit": Case("ViT-Tiny 96 px, batch 16, 5 tasks", 16, 96, named(*FIVE), "vit_tiny_patch16_224", {}),
    "resnet": Case("resnet18 96 px, batch 8, 5 tasks", 8, 96, named(*FIVE), "resnet18", {}),
}


def depths(count: int) -> dict[str, Task]:
    return {f"depth{i}": Depth(f"depth{i}") for i in range(count)}


LARGE = Case("ViT-B 64 px, batch 1, 13 tasks", 1, 64, depths(13), "vit_base_patch16_224", {})
"""A row has 86 million numbers, so memory depends on the number of rows and not on the image size."""


def many_tasks(count: int) -> Case:
    """Returns a small transformer with the given number of depth tasks."""
    return Case(f"{count} tasks", 8, 64, depths(count), "vit_tiny_patch16_224", SMALL_VIT)
