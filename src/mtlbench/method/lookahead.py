"""What would happen, without it happening: moved parameters, and the change that a step would make."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mtlbench.method.optimisers import fused_on_cpu


@contextmanager
def moved(network: nn.Module, parameters: Sequence[nn.Parameter], change: Sequence[Tensor]) -> Iterator[None]:
    """Within it, parameters are moved, buffers are copies, and random numbers are of no consequence.

    Afterwards everything is as it was, bit for bit. Values are never written in place: what a graph has saved stays.

    Args:
        network: All its buffers are copied, because a forward pass in training mode moves them.
        parameters: Those to be moved.
        change: One tensor per parameter, or none at all.
    """
    buffers = list(network.buffers())
    kept = [(tensor, tensor.data) for tensor in (*parameters, *buffers)]
    try:
        for parameter, difference in zip(parameters, change, strict=bool(change)):
            parameter.data = parameter.data + difference.to(parameter.dtype)
        for buffer in buffers:
            buffer.data = buffer.data.clone()
        with random_state_kept(kept[0][0].device if kept else None):
            yield
    finally:
        for tensor, value in kept:
            tensor.data = value


@contextmanager
def random_state_kept(device: torch.device | None) -> Iterator[None]:
    """Restores the global generators of the CPU and of ``device`` on exit."""
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        yield


@torch.no_grad()
def change_by(optimiser: Optimizer, parameters: Sequence[nn.Parameter], gradient: Tensor) -> Tensor:
    """Returns the change (P,) that an optimiser would make in its next step.

    A twin of the optimiser steps twins of these parameters alone, with its learning rate, weight decay and state as
    they are now; only rounding may differ from the real step. Hooks on the optimiser are not called. Memory: P numbers
    for the parameters, the result and each part of the state, beside what the step itself takes.

    Args:
        optimiser: Of any class whose state is kept per parameter, as in all of ``torch.optim`` but LBFGS.
        parameters: A part of its parameters; P numbers in all.
        gradient: (P,) in their order.
    """
    change = gradient.clone()  # An optimiser may write into gradients; then the place of the result.
    parts = [part.view_as(p) for p, part in zip(parameters, change.split([p.numel() for p in parameters]), strict=True)]
    twins = {id(p): nn.Parameter(p.detach().clone()) for p in parameters}
    for parameter, part in zip(parameters, parts, strict=True):
        twins[id(parameter)].grad = part.to(parameter.dtype)
    with random_state_kept(change.device), torch.enable_grad():
        _twin(optimiser, twins).step()
    for parameter, part in zip(parameters, parts, strict=True):
        torch.sub(twins[id(parameter)].data, parameter.data, out=part)
    return change


@torch.no_grad()
def descent_by(optimiser: Optimizer, parameters: Sequence[nn.Parameter], gradient: Tensor) -> Tensor:
    """Returns the change (P,) of plain gradient descent at the optimiser's present learning rates.

    Momentum, decay and whatever else the optimiser does have no part in it.

    Args:
        optimiser: Its groups tell the rate of every parameter.
        parameters: A part of its parameters; P numbers in all.
        gradient: (P,) in their order.
    """
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    parts = gradient.split([p.numel() for p in parameters])
    return torch.cat([-rates[id(p)] * part for p, part in zip(parameters, parts, strict=True)])


def _twin(optimiser: Optimizer, twins: dict[int, nn.Parameter]) -> Optimizer:
    """Returns a copy of the optimiser that knows the twins alone."""
    found = copy.copy(optimiser)
    found.param_groups, found.state = [], defaultdict(dict)
    for group in optimiser.param_groups:
        known = [p for p in group["params"] if id(p) in twins]
        found.param_groups.append({**group, **fused_on_cpu(group), "params": [twins[id(p)] for p in known]})
        for parameter in known:
            if parameter in optimiser.state:
                found.state[twins[id(parameter)]] = _copied(optimiser.state[parameter])
    return found


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {key: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v) for key, v in state.items()}
