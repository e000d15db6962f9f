"""Prints the time saved by running tasks together: ``python -m benchmarks.tasks_together [pairs]``.

Measures a forward and backward pass of `ExpertViT` with four blocks of width 192, 16 experts in every MLP, 4 experts
per token and a router per task. There are no heads, so that only experts and attention are timed. T tasks run in one
pass and in passes of about `TOKENS_PER_PASS` tokens, relative to T passes of one task each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.arguments import call
from benchmarks.pairs import spread
from mtlbench.networks.encoder import build_encoder
from mtlbench.networks.experts.network import TOKENS_PER_PASS
from mtlbench.networks.experts.vit import ExpertOptions, ExpertViT
from mtlbench.training.malloc import keep_freed_memory

SIDE, PATCH, WARMUP = 48, 8, 4
TOKENS = (SIDE // PATCH) ** 2 + 1
OPTIONS = {"patch_size": PATCH, "embed_dim": 192, "depth": 4, "num_heads": 3}


def main(pairs: int = 21) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    print("| tasks | images | tokens | one pass | passes of 4096 tokens | one after another, ms |")
    print("|---|---|---|---|---|---|")
    for tasks, total in ((5, 1024), (5, 4096), (5, 16384), (2, 4096), (10, 4096), (20, 4096)):
        row(tasks, max(1, round(total / (tasks * TOKENS))), pairs if total <= 4096 else max(5, pairs // 3))
    print("\nOver T passes: medians and quartiles of interleaved ratios. Aim: at most 0.75 with 5 tasks at 1k tokens.")


def row(tasks: int, images: int, pairs: int) -> None:
    names = [f"t{i}" for i in range(tasks)]
    encoder = build_encoder("vit_tiny_patch16_224", image_size=(SIDE, SIDE), options=OPTIONS)
    network = ExpertViT(encoder, names, ExpertOptions(16, 4, "every", gate="per_task"))
    image = torch.randint(0, 256, (images, 3, SIDE, SIDE), dtype=torch.uint8)
    chunk = max(1, TOKENS_PER_PASS // (images * TOKENS))
    found: list[list[float]] = []
    for _ in range(WARMUP + pairs):
        found.append([seconds(step(network, image, names, size)) for size in (tasks, chunk, 1)])
    kept = found[WARMUP:]
    ratios = [spread([times[i] / times[2] for times in kept], ".2f") for i in (0, 1)]
    alone = 1000 * statistics.median(times[2] for times in kept)
    print(f"| {tasks} | {images} | {tasks * images * TOKENS} | {ratios[0]} | {ratios[1]} | {alone:.0f} |", flush=True)


def step(network: ExpertViT, image: torch.Tensor, names: list[str], size: int) -> Callable[[], None]:
    """Returns a function that runs all tasks, ``size`` of them in a pass."""

    def run() -> None:
        network.zero_grad()
        tokens, _ = network.begin(image)
        total = tokens.new_zeros(())
        for start in range(0, len(names), size):
            maps, _ = network.finish(tokens, names[start : start + size])
            total = total + torch.stack([m.square().sum() for m in maps]).sum()
        total.backward()

    return run


def seconds(action: Callable[[], None]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


if __name__ == "__main__":
    call(main, __doc__)
