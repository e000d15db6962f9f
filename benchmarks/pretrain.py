"""Trains the encoders ``mtlbench:scenes`` and ``mtlbench:scenes_vit`` of ``model.weights``; writes weights and logs.

It learns from the labels of five tasks (all of `Scenes` but normals) on rendered scenes whose ``scene_seed`` no
suite uses. Suites therefore start from an encoder that has seen other scenes of the same renderer with these labels.

    python -m benchmarks.pretrain scenes
    python -m benchmarks.pretrain scenes_vit

Prints losses, and the scores on further scenes of the pretraining seed at the end.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from data_modules.scenes import Scenes
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.encoder import PRETRAINED
from mtlbench.tasks import IGNORE

SEED = 7777
"""``scene_seed`` of the pretraining scenes; suites use 0."""

TASKS = ("semseg", "parts", "saliency", "depth", "edges")
SIZE = 48
ENCODERS: dict[str, dict[str, Any]] = {
    "scenes": {"encoder": "stem_vit_tiny"},
    "scenes_vit": {
        "encoder": "vit_tiny_patch16_224",
        "encoder_options": {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 4},
    },
}
"""Encoder by name of the weights."""
BATCH, RATE, DECAY, WARMUP, SMOOTH = 32, 2e-3, 0.05, 0.05, 0.02


class Split:
    """A split of `Scenes` as tensors, from which batches are cut without a loop over images."""

    def __init__(self, data: Scenes, split: str):
        self.arrays = {name: torch.from_numpy(array.copy()) for name, array in data._load(split).items()}
        self.people = self.arrays["parts"].flatten(1).amax(1) > 0

    def __len__(self) -> int:
        return len(self.people)

    def batch(self, index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns images and targets; an image without people has no label of parts."""
        taken = {name: array[index] for name, array in self.arrays.items()}
        depth = taken["depth"].float()[:, None]
        parts = taken["parts"].long()
        parts[~self.people[index]] = IGNORE
        return taken["image"], {
            "semseg": taken["semseg"].long(),
            "parts": parts,
            "saliency": taken["saliency"].float()[:, None],
            "depth": torch.where(depth > 0, depth, float(IGNORE)),
            "edges": taken["edges"].float()[:, None],
        }


def augmented(
    image: Tensor, targets: dict[str, Tensor], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the batch with half of its images mirrored, and with other contrast, colour and brightness."""
    count = len(image)
    mirror = torch.rand(count, generator=generator) < 0.5

    def flipped(x: Tensor) -> Tensor:
        return torch.where(mirror.view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x)

    contrast = torch.rand(count, 1, 1, 1, generator=generator) * 0.3 + 0.85
    colour = torch.rand(count, 3, 1, 1, generator=generator) * 0.1 + 0.95
    brightness = torch.rand(count, 1, 1, 1, generator=generator) * 24 - 12
    changed = (flipped(image).float() - 127.5) * contrast * colour + 127.5 + brightness
    return changed.round().clamp(0, 255).to(torch.uint8), {name: flipped(x) for name, x in targets.items()}


def losses(network: DenseNetwork, image: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the mean loss of every task."""
    predictions = network(image, TASKS).predictions
    return {
        name: Scenes.TASKS[name].loss(predictions[name], targets[name])
        / Scenes.TASKS[name].valid(targets[name]).sum().clamp(min=1)
        for name in TASKS
    }


def train(network: DenseNetwork, data: Split, steps: int, every: int) -> Iterator[dict[str, float]]:
    """Trains for some steps and yields smoothed losses every so often."""
    generator = torch.Generator().manual_seed(SEED)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    smooth: dict[str, float] = {}
    start = time.process_time()
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(step / (WARMUP * steps), 0.5 * (1 + math.cos(math.pi * step / steps)))
        image, targets = augmented(*data.batch(torch.randint(len(data), (BATCH,), generator=generator)), generator)
        found = losses(network, image, targets)
        optimiser.zero_grad()
        torch.stack([Scenes.TASKS[name].scale * loss for name, loss in found.items()]).sum().backward()
        optimiser.step()
        for name, loss in found.items():
            smooth[name] = smooth.get(name, loss.item()) * (1 - SMOOTH) + loss.item() * SMOOTH
        if step % every == 0 or step == steps:
            rounded = {name: round(value, 4) for name, value in smooth.items()}
            yield {"step": step, "cpu_seconds": round(time.process_time() - start), **rounded}


@torch.no_grad()
def scores(network: DenseNetwork, data: Split) -> dict[str, float]:
    """Returns the scores on a split."""
    network.eval()
    metrics = {name: Scenes.TASKS[name].metric() for name in TASKS}
    for start in range(0, len(data), BATCH):
        index = torch.arange(start, min(start + BATCH, len(data)))
        image, targets = data.batch(index)
        for name, prediction in network(image, TASKS).predictions.items():
            metrics[name].update(prediction, targets[name])
    return {key: float(value) for metric in metrics.values() for key, value in metric.compute().items()}


def write(network: DenseNetwork, rows: Sequence[Mapping[str, float]], out: Path) -> None:
    """Writes the encoder in half precision, and the log beside it."""
    # Named as timm names them, so that timm loads them, also for another size of images.
    state = network.encoder.trunk.model.state_dict()
    save_file({name: value.half().contiguous() for name, value in state.items()}, out)
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Trains, then writes weights in half precision and the log beside them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=ENCODERS, help="which weights to make")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--scenes", type=int, default=30000)
    parser.add_argument("--every", type=int, default=100, help="steps between two lines of the log")
    parser.add_argument("--cache", default=None, help="folder of rendered scenes")
    parser.add_argument("--out", type=Path, default=PRETRAINED, help="folder of weights and log")
    arguments = parser.parse_args()
    out = arguments.out / f"{arguments.name}.safetensors"
    torch.manual_seed(SEED)
    options = {"train": arguments.scenes, "val": 1, "test": 300, "cache": arguments.cache}
    data = Scenes(size=SIZE, typical=0.8, scene_seed=SEED, **options)
    model = {**ENCODERS[arguments.name], "image_size": (SIZE, SIZE), "decoder_channels": 32, "upsampling": "learned"}
    network = DenseNetwork({name: Scenes.TASKS[name] for name in TASKS}, **model)
    rows = []
    for row in train(network, Split(data, "train"), arguments.steps, arguments.every):
        rows.append(row)
        print(row, flush=True)
        write(network, rows, out)
    print({name: round(value, 4) for name, value in scores(network, Split(data, "test")).items()})


if __name__ == "__main__":
    main()
