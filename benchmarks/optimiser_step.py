"""Prints the CPU time of AdamW's step by kernel: ``python -m benchmarks.optimiser_step [rounds]``."""

from __future__ import annotations

import statistics
import time

import timm
import torch
from torch.optim import Optimizer
from transformers import BertConfig, BertModel

from benchmarks.arguments import call
from mtlbench.method.optimisers import build_optimiser

CONFIG = {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01}
SMALL = BertConfig(hidden_size=384, num_hidden_layers=2, num_attention_heads=12, intermediate_size=1536)


def main(rounds: int = 9) -> None:
    torch.set_num_threads(1)
    networks = {
        "ViT-Tiny": timm.create_model("vit_tiny_patch16_224"),
        "ResNet-18": timm.create_model("resnet18"),
        "MiniLM, 2 layers": BertModel(SMALL),
    }
    print("| network | weights | one pass | a pass per operation | ratio |\n|---|---|---|---|---|")
    for name, network in networks.items():
        parameters = list(network.parameters())
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        one = build_optimiser([{"params": parameters}], CONFIG)
        several = torch.optim.AdamW(parameters, lr=CONFIG["lr"], weight_decay=CONFIG["weight_decay"], foreach=True)
        times = [(seconds(one), seconds(several)) for _ in range(rounds + 1)][1:]  # The first step makes the state.
        ratio = statistics.median(a / b for a, b in times)
        ours, theirs = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        size = sum(p.numel() for p in parameters) / 1e6
        print(f"| {name} | {size:.1f} M | {ours:.1f} ms | {theirs:.1f} ms | {ratio:.2f} |")


def seconds(optimiser: Optimizer) -> float:
    start = time.process_time()
    optimiser.step()
    return time.process_time() - start


if __name__ == "__main__":
    call(main, __doc__)
