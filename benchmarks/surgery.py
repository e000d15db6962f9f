"""Prints the cost of a surgery step over its floor: ``python benchmarks/surgery.py [pairs]``.

The floor is one forward pass, one `autograd.grad` per task through its head and the shared parameters, and the
optimiser's step. Nothing is averaged, combined or copied in it.
"""

from __future__ import annotations

import copy
import sys

import torch
from pairs import losses_of, measure, spread

from data_modules.scenes import Scenes
from mtlbench.data import Batch, Collate
from mtlbench.method import DEFAULT_OPTIMISER, MethodSpec, MTLMethod
from mtlbench.run import build_method

VIT = {"patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}
FIVE = ("semseg", "parts", "saliency", "normals", "edges")
CASES = {
    "ViT 64 px, batch 16, 6 tasks": (16, 64, tuple(Scenes.TASKS), "vit_tiny_patch16_224", VIT),
    "resnet18 96 px, batch 8, 5 tasks": (8, 96, FIVE, "resnet18", {}),
}


def main(pairs: int = 30) -> None:
    torch.set_num_threads(1)
    print("| network | method | step / floor | floor, ms |")
    print("|---|---|---|---|")
    for case, (size, pixels, tasks, encoder, options) in CASES.items():
        for name in ("pcgrad", "graddrop"):
            model = {
                "encoder": encoder, "encoder_options": options, "image_size": [pixels, pixels], "decoder_channels": 48,
            }  # fmt: skip
            ratios, floors = compare(name, model, _batch(size, pixels, tasks), tasks, pairs)
            print(f"| {case} | {name} | {spread(ratios, '.3f')} | {spread(floors, '.0f')} |", flush=True)
    print(f"One thread, float32, AdamW; {pairs} interleaved pairs each, Lightning's loop included. Aim: at most 1.15.")


def compare(
    name: str, model: dict, batch: Batch, tasks: tuple[str, ...], pairs: int
) -> tuple[list[float], list[float]]:
    spec = MethodSpec({t: Scenes.TASKS[t] for t in tasks}, model, dict(DEFAULT_OPTIMISER), 10**6, 1000)
    method = build_method({"path": name, "arguments": {}}, spec)
    method.configure_model()
    measured = measure(method, batch, floor(method, batch), blocks=pairs)
    return [step / least for step, least in measured], [1000 * least for _, least in measured]


def floor(method: MTLMethod, batch: Batch):
    """Returns a function that does one step of the floor on a copy of the network."""
    network = copy.deepcopy(method.network).train()
    names = list(method.tasks)
    shared = network.shared_parameters(names)
    owned = [network.task_parameters(name) for name in names]
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)

    def step() -> None:
        losses = losses_of(method, network, batch)
        for i, loss in enumerate(losses):
            wanted = [*shared, *owned[i]]
            found = torch.autograd.grad(loss, wanted, retain_graph=i + 1 < len(losses), allow_unused=True)
            for parameter, gradient in zip(wanted, found, strict=True):
                parameter.grad = gradient
        optimiser.step()

    return step


def _batch(size: int, pixels: int, tasks: tuple[str, ...]) -> Batch:
    data = Scenes(size=pixels, train=size, val=1, test=1, tasks={task: Scenes.TASKS[task] for task in tasks})
    samples = data.samples("train")
    return Collate(data.tasks)([samples[i] for i in range(size)])


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
