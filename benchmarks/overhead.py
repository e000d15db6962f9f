"""Prints what Lightning and MTLMethod add to a step of a two-layer network: ``python -m benchmarks.overhead``."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.pairs import losses_of, measure, spread
from mtlbench.data import Collate
from mtlbench.method import DEFAULT_OPTIMISER, MethodSpec, MTLMethod
from mtlbench.method.optimisers import build_optimiser
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.tasks import Regression
from mtlbench.training.build import build_method

TASKS = {"one": Regression("one"), "two": Regression("two")}
BLOCK, BLOCKS = 10, 60


class TwoLayers(MTLNetwork):
    """One shared layer, one head per task."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3 * 8 * 8, 64)
        self.heads = nn.ModuleDict({name: nn.Linear(64, 1) for name in TASKS})

    def forward(self, image: Tensor, tasks: Sequence[str]) -> Outputs:
        hidden = self.shared(image.flatten(1).float() / 255).relu()
        return Outputs({name: self.heads[name](hidden) for name in tasks})

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        return [self.heads[task]]


class Small(MTLMethod):
    def build_network(self) -> MTLNetwork:
        return TwoLayers()


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8)
    samples = [{"image": i, "targets": {n: i.float().mean() / 255 for n in TASKS}, "id": ""} for i in images]
    batch = Collate(TASKS)(samples)
    print("| balancer | Lightning + MTLMethod, ms added to a step | step, ms | bare step, ms |")
    print("|---|---|---|---|")
    for balancer in ("uniform", "uncertainty", "pcgrad"):
        report(balancer, batch)
    print(
        f"Two linear layers, batch 32, 2 tasks, AdamW, one thread; paired blocks of {BLOCK} steps, {BLOCKS} blocks; "
        "the bare loop is forward, two losses, one backward, AdamW. Aim: at most 2 ms for uniform."
    )


def report(balancer: str, batch: dict) -> None:
    spec = MethodSpec(TASKS, optimiser=dict(DEFAULT_OPTIMISER), steps=10**6, steps_per_epoch=1000)
    base = build_method({"path": balancer, "arguments": {}}, spec)
    method = Small(spec)
    method.use_balancer(base.balancer)
    method.configure_model()
    network = copy.deepcopy(method.network)
    optimiser = build_optimiser([{"params": list(network.parameters())}], DEFAULT_OPTIMISER)

    def bare() -> None:
        optimiser.zero_grad()
        sum(losses_of(method, network, batch)).backward()
        optimiser.step()

    pairs = measure(method, batch, bare, blocks=BLOCKS, block=BLOCK)
    added = [1000 * (framework - plain) for framework, plain in pairs]
    framework, plain = ([1000 * pair[i] for pair in pairs] for i in (0, 1))
    print(f"| {balancer} | {spread(added, '.2f')} | {spread(framework, '.2f')} | {spread(plain, '.2f')} |", flush=True)


if __name__ == "__main__":
    main()
