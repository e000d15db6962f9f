"""Prints the cost of look-aheads relative to their passes: ``python -m benchmarks.probes [PART ...] [--pairs 25]``.

``tag`` compares `inter_task_affinity` at its default period with ten uniform steps, one of which has T backward passes
instead of one and T additional forward passes. ``hydalearn`` compares a step with one forward pass, T backward passes
and T forward passes through the head of the main task. Both references include the optimiser's step but no previews,
moves, combinations or copies. All steps take turns in one process.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable

import torch

from benchmarks.networks import CASES, Case
from benchmarks.pairs import measure, run_parts, spread
from benchmarks.surgery import Step, floor, uniform
from mtlbench.method import MTLMethod

PERIOD = 10


def tag(pairs: int) -> None:
    print("| network | ten steps / passes counted | ten steps / ten uniform steps | passes counted, ms per step |")
    print("|---|---|---|---|")
    for case in CASES.values():
        method = case.method("inter_task_affinity")
        plain = uniform(method, case)
        counted = in_turn(PERIOD, looking(method, case, list(method.tasks)), plain)
        _row(case.title, measure(method, case.batch(), counted, plain, blocks=pairs, block=PERIOD))
    print(f"\nAim: at most 1.1 in the first column. {CONDITIONS.format(pairs=pairs)}\n")


def hydalearn(pairs: int) -> None:
    print("| network | step / passes counted | step / uniform step | passes counted, ms |\n|---|---|---|---|")
    for case in CASES.values():
        method = case.method("hydalearn")
        counted = looking(method, case, [method.main])
        _row(case.title, measure(method, case.batch(), counted, uniform(method, case), blocks=pairs))
    print(f"\n{CONDITIONS.format(pairs=pairs)}\n")


CONDITIONS = (
    "One thread, float32, AdamW in all; medians and quartiles of {pairs} interleaved ratios of CPU time; "
    "Lightning's loop is part of ours."
)


def _row(title: str, found: list[tuple[float, ...]]) -> None:
    over = [(ours / counted, ours / plain) for ours, counted, plain in found]
    ratios = " | ".join(spread(values, ".3f") for values in zip(*over, strict=True))
    print(f"| {title} | {ratios} | {statistics.median(1000 * counted for _, counted, _ in found):.0f} |", flush=True)


def in_turn(period: int, first: Step, others: Step) -> Step:
    """Returns a function that does one step in ``period`` by ``first``, beginning with it."""
    calls = 0

    def step() -> None:
        nonlocal calls
        (others if calls % period else first)()
        calls += 1

    return step


def looking(method: MTLMethod, case: Case, wanted: list[str]) -> Step:
    """Returns a function that does a step of the floor, and T forward passes for the losses of the wanted tasks."""
    network, batch = copy.deepcopy(method.network).train(), case.batch()
    apart = floor(method, case)

    @torch.no_grad()
    def look() -> None:
        for name, found in network(batch["image"], wanted).predictions.items():
            method.tasks[name].loss(found, batch["targets"][name])

    def step() -> None:
        apart()
        for _ in method.tasks:
            look()

    return step


PARTS: dict[str, Callable[[int], None]] = {"tag": tag, "hydalearn": hydalearn}


if __name__ == "__main__":
    run_parts(__doc__, PARTS)
