"""Prints what a surgery step costs: ``python -m benchmarks.surgery [PART ...] [--pairs 25]``.

Time over its floor and over a uniform step, beside TorchJD and, where it is installed, LibMTL; growth with the number
of tasks; cost of loss rules; peak memory, up to a ViT-B with 13 tasks (6 GB of it); all rows in one batched backward
pass.

The floor is one forward pass, one `autograd.grad` per task through its head and the shared parameters, and the
optimiser's step. Nothing is averaged, combined or copied in it. All steps take turns in one process.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torchjd.aggregation import PCGrad
from torchjd.autojac import jac_to_grad, mtl_backward

from benchmarks.networks import CASES, LARGE, Case, many_tasks
from benchmarks.pairs import DEVICE, losses_of, measure, run_parts, spread
from benchmarks.tensor_memory import peak_bytes
from mtlbench import registry
from mtlbench.balancing import Balancer
from mtlbench.balancing.base import GRADIENT_HOOKS
from mtlbench.balancing.gradients import update
from mtlbench.method import DEFAULT_OPTIMISER, MTLMethod
from mtlbench.method.optimisers import build_optimiser

LEVELS = ("auto_lambda", "it_mtl", "moml", "samo")
"""Rules that run the network more often than once per step."""
MOST_TASKS = 40
Step = Callable[[], None]


def rules(hook: str) -> list[str]:
    """Returns the names of the shipped balancers of a kind that run the network once per step.

    Args:
        hook: ``"loss"`` for rules on losses alone; ``"gradient"`` for rules on the gradients of all shared parameters
            from one batch, whose floor is the same.
    """
    found = []
    for name in registry.shipped():
        cls = registry.find(name)
        if not issubclass(cls, Balancer) or ".probes." in cls.__module__ or name in LEVELS:
            continue
        on_gradients = any(getattr(cls, other) is not getattr(Balancer, other) for other in GRADIENT_HOOKS)
        if on_gradients == (hook == "gradient") and cls.view == "parameters" and cls.batches == 1:
            found.append(name)
    return found


def over_the_floor(pairs: int) -> None:
    print("| network | method | step / floor | step / uniform | floor, ms |\n|---|---|---|---|---|")
    for case in CASES.values():
        for name in rules("gradient"):
            method = case.method(name)
            found = measure(method, case.batch(), floor(method, case), uniform(method, case), blocks=pairs)
            _row(case.title, name, found)
        others = {"TorchJD": torchjd} | ({"LibMTL": libmtl} if their_pcgrad() else {})
        for name, other in others.items():
            method = case.method("uniform")
            steps = (other(method, case), floor(method, case), uniform(method, case))
            found = [times[1:] for times in measure(method, case.batch(), *steps, blocks=pairs)]
            _row(case.title, f"{name}'s PCGrad", found)
    print(
        f"\nOne thread, float32, AdamW in all; medians and quartiles of {pairs} interleaved ratios of CPU time; "
        "Lightning's loop is part of ours. TorchJD: mtl_backward, jac_to_grad; LibMTL: its weighting's backward.\n"
        "Aims: at most 1.05 on the ViT, 1.12 on the ResNet, for pcgrad, mgda, cagrad, upgrad and nash_mtl.\n"
    )


def memory(pairs: int) -> None:
    print("| network | way | peak over what a uniform step makes, in P numbers |\n|---|---|---|")
    for case in CASES.values():
        plain = _peak(case, "uniform", "plain")
        size = 4 * sum(p.numel() for p in case.method("uniform").surgery.shared)
        update.CHUNK = size  # P numbers: the default would hold all rows of networks as small as these
        for name, way in (("mgda", "plain"), ("mgda", "light"), ("graddrop", "plain"), ("db_mtl", "plain")):
            print(f"| {case.title} | {name}, {way} | {(_peak(case, name, way) - plain) / size:.2f} |", flush=True)
    print(
        "\nTensors made in a step are counted, not the process; P numbers are the shared parameters in float32; "
        "the light way holds a chunk of P.\n"
    )


def memory_growth(pairs: int) -> None:
    print("| network, tasks | P, millions | uniform | plain | light |\n|---|---|---|---|---|")
    for case in (*(replace(many_tasks(tasks), size=2) for tasks in (2, 5, 13, 40)), LARGE):
        size = 4 * sum(p.numel() for p in case.method("uniform").surgery.shared)
        update.CHUNK = min(1 << 30, size)
        found = [_peak(case, *way) for way in (("uniform", "plain"), ("mgda", "plain"), ("mgda", "light"))]
        megabytes = " | ".join(f"{peak / 2**20:.0f} MB" for peak in found)
        print(f"| {case.title} | {size / 4e6:.2f} | {megabytes} |", flush=True)
    print("\nPeak of the tensors made in a step. The light way holds a chunk of P, at most 1 GiB.\n")


def _peak(case: Case, name: str, way: str) -> int:
    """Returns the bytes of tensors that one training step makes at most, without the optimiser's."""
    method = case.method(name)
    method.update.needs = method.update.needs.chosen(way)
    method._trainer = SimpleNamespace(
        accumulate_grad_batches=1,
        global_step=0,
        global_rank=0,
        precision="32-true",
        world_size=1,
        optimizers=[SimpleNamespace(param_groups=[{"lr": 1e-3}])],
    )

    def step() -> None:
        method.backward(method.training_step(case.batch(), 0))
        method.on_before_optimizer_step(None)

    return peak_bytes(step)


def growth(pairs: int) -> None:
    print("| tasks | method | step / floor | floor / uniform |\n|---|---|---|---|")
    for tasks in (2, 5, 13, 40):
        case = many_tasks(tasks)
        for name in ("pcgrad", "upgrad"):
            method = case.method(name)
            rounds = max(8, pairs * 5 // tasks)
            found = measure(method, case.batch(), floor(method, case), uniform(method, case), blocks=rounds)
            ratio = statistics.median(least / plain for _, least, plain in found)
            print(f"| {tasks} | {name} | {spread([s / f for s, f, _ in found], '.3f')} | {ratio:.2f} |", flush=True)
    print("\nViT of width 128 and depth 4 at 64 px, batch 8, depth tasks alone.")


def loss_rules(pairs: int) -> None:
    print("| tasks | method | step / uniform step |\n|---|---|---|")
    for tasks in (5, MOST_TASKS):
        case = many_tasks(tasks)
        for name in (*rules("loss"), "ldc_mtl", *(LEVELS if tasks == 5 else ())):
            method = case.method(name)
            found = measure(method, case.batch(), uniform(method, case), blocks=pairs)
            print(f"| {tasks} | {name} | {spread([s / plain for s, plain in found], '.2f')} |", flush=True)
    print(
        "\nThe network of the part growth. uniform: Lightning's loop around the same step. Aim: at most 1.4 at 40 "
        "tasks. The passes of SAMO and MOML grow with the tasks.\n"
    )


def batched(pairs: int) -> None:
    print("| network | batched / loop | loop, ms |\n|---|---|---|")
    for case in CASES.values():
        method = case.method("uniform")
        found = measure(method, case.batch(), floor(method, case), in_one_pass(method, case), blocks=pairs)
        least = statistics.median(1000 * loop for _, loop, _ in found)
        print(f"| {case.title} | {spread([b / loop for _, loop, b in found], '.2f')} | {least:.0f} |", flush=True)
    print(
        "\nThe loop is the floor. Batched: T passes through the heads, one with is_grads_batched through the trunk.\n"
    )


def _row(title: str, name: str, found: Sequence[tuple[float, ...]]) -> None:
    floor_, plain = [s / least for s, least, _ in found], [s / plain for s, _, plain in found]
    least = statistics.median(1000 * least for _, least, _ in found)
    print(f"| {title} | {name} | {spread(floor_, '.3f')} | {spread(plain, '.2f')} | {least:.0f} |", flush=True)


def floor(method: MTLMethod, case: Case) -> Step:
    """Returns a function that does one step of the floor on a copy of the network."""
    network, optimiser, shared, owned = _parts(method)
    batch = case.batch()

    def step() -> None:
        with case.autocast():
            losses = losses_of(method, network, batch)
        for i, loss in enumerate(losses):
            wanted = [*shared, *owned[i]]
            found = torch.autograd.grad(loss, wanted, retain_graph=i + 1 < len(losses), allow_unused=True)
            for parameter, gradient in zip(wanted, found, strict=True):
                parameter.grad = gradient
        optimiser.step()

    return step


def in_one_pass(method: MTLMethod, case: Case) -> Step:
    """Returns a function that does the floor's step with all rows in one batched pass through the trunk."""
    network, optimiser, shared, owned = _parts(method)
    batch = case.batch()

    def step() -> None:
        with case.autocast():
            outputs = network(batch["image"], list(method.tasks))
            losses = losses_of(method, network, batch, outputs.predictions)
        z, cotangents = outputs.representation, []
        for i, loss in enumerate(losses):
            *heads, cotangent = torch.autograd.grad(loss, [*owned[i], z])
            cotangents.append(cotangent)
            for parameter, gradient in zip(owned[i], heads, strict=True):
                parameter.grad = gradient
        found = torch.autograd.grad(z, shared, torch.stack(cotangents), is_grads_batched=True, allow_unused=True)
        for parameter, gradients in zip(shared, found, strict=True):
            parameter.grad = None if gradients is None else gradients[-1]
        optimiser.step()

    return step


def uniform(method: MTLMethod, case: Case) -> Step:
    """Returns a function that does one step on the sum of the losses."""
    network, optimiser, _, _ = _parts(method)
    batch = case.batch()

    def step() -> None:
        optimiser.zero_grad()
        with case.autocast():
            total = sum(losses_of(method, network, batch))
        total.backward()
        optimiser.step()

    return step


def torchjd(method: MTLMethod, case: Case) -> Step:
    """Returns a function that does one step of PCGrad by TorchJD's own engine."""
    network, optimiser, shared, owned = _parts(method)
    batch, aggregator = case.batch(), PCGrad()

    def step() -> None:
        optimiser.zero_grad()
        with case.autocast():
            outputs = network(batch["image"], list(method.tasks))
            losses = losses_of(method, network, batch, outputs.predictions)
        mtl_backward(losses, features=outputs.representation, tasks_params=owned, shared_params=shared)
        jac_to_grad(shared, aggregator)
        optimiser.step()

    return step


def libmtl(method: MTLMethod, case: Case) -> Step:
    """Returns a function that does one step of PCGrad by LibMTL's own engine."""
    network, optimiser, shared, _ = _parts(method)
    batch, rule = case.batch(), their_pcgrad()()
    rule.task_num, rule.rep_grad, rule.device = len(method.tasks), False, DEVICE
    rule.get_share_params = lambda: shared
    # As its architectures do; later steps of the rule write into these gradients.
    rule.zero_grad_share_params = lambda: [p.grad.zero_() for p in shared]

    def step() -> None:
        optimiser.zero_grad()
        with case.autocast():
            losses = torch.stack(losses_of(method, network, batch))
        rule.backward(losses)
        optimiser.step()

    return step


@cache
def their_pcgrad() -> Any:
    """Returns LibMTL's rule, or None where it cannot be had; its releases need an older torchvision."""
    try:
        from LibMTL.weighting import PCGrad as rule
    except ImportError as error:
        print(f"LibMTL is left out: {error}.")
        return None
    return rule


def _parts(method: MTLMethod):
    network = copy.deepcopy(method.network).to(DEVICE).train()
    names = list(method.tasks)
    optimiser = build_optimiser([{"params": list(network.parameters())}], DEFAULT_OPTIMISER)
    return network, optimiser, network.shared_parameters(names), [network.task_parameters(name) for name in names]


PARTS: dict[str, Callable[[int], None]] = {
    "memory": memory, "memory-growth": memory_growth, "floor": over_the_floor, "growth": growth, "batched": batched,
    "loss-rules": loss_rules,
}  # fmt: skip


if __name__ == "__main__":
    run_parts(__doc__, PARTS)
