"""Prints what recomputed activations cost and save: ``python -m benchmarks.recompute [pairs]``.

The cost is the time of a forward and backward pass with `trainer.gradient_checkpointing` relative to one without it.
The saving is in the bytes that the graph of the whole network keeps for the backward pass. Both networks take turns
in one process. Times are CPU times of one thread, and the first pairs warm up.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from benchmarks.arguments import call
from benchmarks.networks import CASES, Case
from benchmarks.pairs import DEVICE, clock, losses_of, spread
from mtlbench.training.malloc import keep_freed_memory

WARMUP = 2


def main(pairs: int = 9) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as in every run
    print("| network | method | time | kept, MB | kept with recomputing, MB |\n|---|---|---|---|---|")
    for case in CASES.values():
        for name in ("uniform", "task_moe") if "vit" in case.encoder else ("uniform",):
            ratios, kept = measure(case, name, pairs)
            sizes = " | ".join(f"{size / 2**20:.0f}" for size in kept)
            print(f"| {case.title} | {name} | {spread(ratios, '.2f')} | {sizes} |", flush=True)
    print(f"\nMedians and quartiles of {pairs} interleaved ratios of CPU time, one thread, float32.")


def measure(case: Case, name: str, pairs: int) -> tuple[list[float], list[int]]:
    """Returns ratios of time, and the bytes kept without and with recomputing."""
    method = case.method(name)
    networks = [method.network.train(), copy.deepcopy(method.network).train()]
    networks = [network.to(DEVICE) for network in networks]
    networks[1].recompute_encoder()
    ratios, kept = [], [0, 0]
    for _ in range(WARMUP + pairs):
        seconds = []
        for which, network in enumerate(networks):
            start = clock()
            total = torch.stack(losses_of(method, network, case.batch())).sum()
            total.backward()
            seconds.append(clock() - start)
            kept[which] = kept[which] or kept_bytes(method, network, case)
        ratios.append(seconds[1] / seconds[0])
    return ratios[WARMUP:], kept


def kept_bytes(method: object, network: torch.nn.Module, case: Case) -> int:
    """Returns the bytes of the storages that a forward pass keeps for the backward pass, without the parameters."""
    own = {p.untyped_storage()._cdata for p in (*network.parameters(), *network.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # Held, so that its place is not taken by another one.
        if storage._cdata not in own:
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = torch.stack(losses_of(method, network, case.batch())).sum()
    found = sum(storage.nbytes() for storage in storages.values())
    del total
    return found


if __name__ == "__main__":
    call(main, __doc__)
