"""Optimisers and learning-rate schedules of a suite. One step is one optimiser step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mtlbench.errors import SuiteError, unknown_name

OPTIMISERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
SCHEDULES = ("constant", "cosine", "poly")


def build_optimiser(groups: Sequence[dict[str, Any]], config: Mapping[str, Any]) -> Optimizer:
    """Returns the optimiser of a suite's ``optimiser`` section.

    Args:
        groups: Parameter groups; a group may carry its own ``lr`` or ``weight_decay``.
        config: ``name``, ``lr``, ``weight_decay`` and, for sgd, ``momentum``.
    """
    name = config["name"]
    if name not in OPTIMISERS:
        raise SuiteError(unknown_name("optimiser", name, OPTIMISERS))
    options = {"lr": config["lr"], "weight_decay": config["weight_decay"]}
    if name == "sgd":
        options["momentum"] = config["momentum"]
    optimiser = OPTIMISERS[name]([group for group in groups if group["params"]], **options)
    for group in optimiser.param_groups:
        group.update(fused_on_cpu(group))
    return optimiser


def fused_on_cpu(group: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the option for the fused kernels of Adam and AdamW if the user left it open and they help.

    One pass through memory takes a fraction of the time of a pass per operation (``benchmarks/optimiser_step.py``).

    Args:
        group: A parameter group of an optimiser, with the optimiser's options.
    """
    # fused=None: the user did not choose. Fused kernels of SGD and Adagrad gain nothing.
    free = "betas" in group and group.get("fused", False) is None
    asked = any(group.get(key) for key in ("foreach", "differentiable", "capturable"))
    return {"fused": True} if free and not asked and all(map(_fits, group["params"])) else {}


def align_gradients(optimiser: Optimizer) -> None:
    """Lays gradients out in memory as their parameters are, since fused kernels walk through both in the same order.

    Gradients of a backward pass are laid out so; those that a rule or a user writes need not be.
    """
    for group in optimiser.param_groups:
        if group.get("fused"):
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
                    parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(parameter.grad)


def _fits(parameter: Tensor) -> bool:
    # Narrower numbers are rounded after every pass, so that one pass would end visibly elsewhere; and the kernels walk
    # through memory, where parameters and gradients are contiguous.
    wide = parameter.dtype in (torch.float32, torch.float64)
    return wide and parameter.device.type == "cpu" and parameter.is_contiguous()


def set_apart(
    groups: Sequence[Mapping[str, Any]], parameters: Iterable[nn.Parameter], **own: Any
) -> list[dict[str, Any]]:
    """Returns parameter groups in which some parameters have one of their own, the last.

    Args:
        groups: Of all parameters.
        parameters: Those that leave the groups they are in.
        own: Options of their group, for example ``lr``; those of the optimiser hold where none is given.
    """
    parameters = list(parameters)
    chosen = {id(p) for p in parameters}
    rest = [{**group, "params": [p for p in group["params"] if id(p) not in chosen]} for group in groups]
    return [*rest, {"params": parameters, **own}]


def slowed(
    groups: Sequence[Mapping[str, Any]], parameters: Iterable[nn.Parameter], factor: float, rate: float
) -> list[dict[str, Any]]:
    """Returns parameter groups in which some parameters have a share of the rate of the group that they were in.

    Args:
        groups: Of all parameters.
        parameters: The slower ones; they follow in groups of their own, after all others.
        factor: Their rate as a share of that of their group.
        rate: Rate of groups without one of their own.
    """
    chosen = {id(p) for p in parameters}

    def part(group: Mapping[str, Any], slow: bool) -> dict[str, Any]:
        own = {"lr": factor * group.get("lr", rate)} if slow else {}
        return {**group, "params": [p for p in group["params"] if (id(p) in chosen) == slow], **own}

    return [part(group, slow) for slow in (False, True) for group in groups]


def build_schedule(optimiser: Optimizer, config: Mapping[str, Any], steps: int) -> LambdaLR:
    """Returns linear warm-up followed by a constant rate, half a cosine, or (1 - step/steps) ** power."""
    name, warmup, power = config["schedule"], config["warmup"], config["power"]
    if name not in SCHEDULES:
        raise SuiteError(unknown_name("schedule", name, SCHEDULES))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        if name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return max(0.0, 1 - done) ** power if name == "poly" else 1.0

    return LambdaLR(optimiser, factor)
