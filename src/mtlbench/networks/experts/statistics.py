"""Routing statistics of a forward pass and their running means, as tables of tasks by experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtlbench.networks.experts.routing import Routing

MOMENTUM = 0.95
"""Momentum of the running tables, per step."""


@dataclass(frozen=True)
class LayerStatistics:
    """Means of one layer's routing over the tokens of each of T tasks.

    Attributes:
        probability: (T, E), P(E | t) before top-k, with gradient.
        load: (T, E), shares of the choices, detached. Rows sum to 1.
        importance: (T, E), mean gate, with gradient.
        log_normaliser: (T,), mean of logsumexp(logits)², with gradient.
    """

    probability: Tensor
    load: Tensor
    importance: Tensor
    log_normaliser: Tensor

    @classmethod
    def of(cls, routing: Routing, experts: int) -> LayerStatistics:
        """Computes the statistics of a routing.

        Args:
            routing: Routing of M tokens of each task.
            experts: Number of experts E.
        """
        tasks = routing.tasks
        tokens = max(1, routing.logits.shape[0] // tasks)
        chosen = routing.chosen.unflatten(0, (tasks, -1)).flatten(1)  # (T, M·k)
        empty = routing.logits.new_zeros(tasks, experts)
        # Sums of ones are exact in any order. A histogram would wait for the device.
        load = empty.scatter_add(1, chosen, torch.ones_like(chosen, dtype=empty.dtype))
        gates = routing.gates.unflatten(0, (tasks, -1))  # (T, M, k)
        importance = empty.scatter_add(1, chosen, gates.flatten(1).to(empty))
        probability = routing.probabilities.unflatten(0, (tasks, -1)).mean(1)
        squares = routing.logits.logsumexp(1).square().unflatten(0, (tasks, -1)).mean(1)
        return cls(probability, load / max(1, chosen.shape[1]), importance / tokens, squares)

    @classmethod
    def cat(cls, parts: Sequence[LayerStatistics]) -> LayerStatistics:
        """Joins statistics of different tasks."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(p, name) for p in parts]) for name in cls.__dataclass_fields__))


class RunningTables(nn.Module):
    """Running means of P(E | t) and of the load of one layer, used for absent tasks and for extraction.

    The rows of a task that was never seen are zero.
    """

    probability: Tensor
    load: Tensor
    seen: Tensor

    def __init__(self, tasks: int, experts: int) -> None:
        """Creates empty tables.

        Args:
            tasks: Number of tasks T.
            experts: Number of experts E.
        """
        super().__init__()
        self.register_buffer("probability", torch.zeros(tasks, experts))
        self.register_buffer("load", torch.zeros(tasks, experts))
        self.register_buffer("seen", torch.zeros(tasks, dtype=torch.bool))

    @torch.no_grad()
    def update(self, probability: Tensor, load: Tensor, present: Tensor) -> None:
        """Updates the means with the tables of a step.

        Args:
            probability: (T, E), over all ranks.
            load: (T, E), over all ranks.
            present: (T,) bool. Rows of other tasks do not change.
        """
        # The first table of a task is used unchanged, because there is no mean yet.
        keep = torch.where(self.seen, MOMENTUM, 0.0).unsqueeze(1).to(self.probability)
        for running, new in ((self.probability, probability), (self.load, load)):
            mixed = keep * running + (1 - keep) * new.to(running)
            running.copy_(torch.where(present.unsqueeze(1), mixed, running))
        self.seen |= present


def global_sum(tensor: Tensor) -> Tensor:
    """Returns the sum over ranks, whose backward pass also sums over ranks; the tensor itself in one process."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    return _Sum.apply(tensor)


def global_mean(tensor: Tensor) -> Tensor:
    """Returns the mean over ranks with gradient; the tensor itself in one process.

    A loss of the result has the gradient of one process once parameter gradients are averaged over ranks: the backward
    pass *sums* ∂loss/∂mean over the R ranks and divides by R, and the average over ranks supplies the other 1/R. All
    ranks have equal weight, whatever their batch size.
    """
    total = global_sum(tensor)
    return tensor if total is tensor else total / dist.get_world_size()


class _Sum(torch.autograd.Function):
    """Sum over ranks, whose backward pass is a sum over ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone()
        dist.all_reduce(total)
        return total
