"""Parts of rules that learn task weights by what a step does to other samples: halves of a batch, and their losses.

The two levels of such a rule need independent samples. They are the two halves of the step's batch, so that every
method sees the same data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mtlbench import distributed
from mtlbench.balancing.gradients.rows import filled
from mtlbench.data import Batch
from mtlbench.data.contract import streams
from mtlbench.method.forward import loss_sums
from mtlbench.method.lookahead import moved
from mtlbench.method.method import MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.seeding import reseed, seed_of
from mtlbench.tasks import Task
from mtlbench.tasks.inputs import inputs_of, length, rows_of

STEP = 0.01
"""Length of the change by which a derivative is measured."""


def halves(batch: Batch, tasks: Mapping[str, Task]) -> tuple[Batch, Batch] | None:
    """Returns the first and the second half of a batch over all ranks; None if a rank has no sample of one of them.

    Args:
        batch: The share of this rank: every ``world``-th sample of the whole batch.
        tasks: Tasks of the run.
    """
    rank, world = distributed.rank(), distributed.world_size()
    parts: tuple[list[Batch], list[Batch]] = [], []
    for stream in streams(batch):
        places = torch.arange(length(stream)) * world + rank
        first = places < len(places) * world // 2
        for part, chosen in zip(parts, (first, ~first), strict=True):
            part.append(_selected(stream, chosen, tasks))
    if length(streams(batch)[0]) < 2:
        return None  # The same on all ranks, whose shares are equally large.
    names = list(batch["streams"]) if "streams" in batch else None
    one, two = (Batch(streams=dict(zip(names, part, strict=True))) if names else part[0] for part in parts)
    return one, two


def _selected(stream: Batch, chosen: Tensor, tasks: Mapping[str, Task]) -> Batch:
    rows = chosen.nonzero()[:, 0]
    targets = {name: target[rows.to(target.device)] for name, target in stream["targets"].items()}
    counts = {name: tasks[name].count(target) for name, target in targets.items() if name in tasks}
    return Batch(inputs=rows_of(inputs_of(stream), rows), targets=targets, counts=counts)


class Bilevel(MTLMethod):
    """Base of rules that move task weights before every step, by its two halves; the weights then train the network."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Moves the weights on the first micro-batch, then takes the step of every method."""
        parts = halves(batch, self.tasks) if batch_idx % self.trainer.accumulate_grad_batches == 0 else None
        if parts is not None:
            parameters = [p for p in self.network.parameters() if p.requires_grad]
            seed = seed_of("bilevel", self.spec.seed, self.trainer.global_step, self.trainer.global_rank)
            self.move(*(PartLosses(self.network, self.tasks, part, seed, parameters) for part in parts))
        return super().training_step(batch, batch_idx)

    def move(self, inner: PartLosses, outer: PartLosses) -> None:
        """Moves the weights by the losses of both halves: a step is tried on the first and judged by the second."""
        raise NotImplementedError


class PartLosses:
    """The losses of a part of a batch, at the network's parameters or at others.

    Args:
        network: The network in training. Its buffers, such as running means, stay as they are.
        tasks: Tasks of the run.
        batch: The share of this rank.
        seed: Seed of dropout and the like, the same in every evaluation.
        parameters: Those by which gradients are taken and which are moved.
    """

    def __init__(
        self,
        network: MTLNetwork,
        tasks: Mapping[str, Task],
        batch: Batch,
        seed: int,
        parameters: Sequence[nn.Parameter],
    ):
        self.network, self.tasks, self.batch, self.seed = network, dict(tasks), batch, seed
        self.parameters = list(parameters)
        local = [sum(stream["counts"].get(name, 0) for stream in streams(batch)) for name in tasks]
        self.counts = distributed.sum_counts(local, next(network.parameters()).device)

    def values(self, change: Sequence[Tensor] = ()) -> Tensor:
        """Returns the scaled losses (T,) over all ranks after a change of the parameters; 0 for absent tasks."""
        with torch.no_grad(), self._moved(change):
            return distributed.mean_(torch.stack(self._shares()))

    def rows(self, weights: Tensor, change: Sequence[Tensor] = ()) -> list[list[Tensor]]:
        """Returns gradients of weighted sums of the losses after a change, averaged over ranks.

        Args:
            weights: (K, T): one gradient per row.
            change: One tensor per parameter, or none at all.
        """
        with torch.enable_grad(), self._moved(change):
            shares = torch.stack(self._shares())
            sums = [(row.to(shares) * shares).sum() for row in weights]
            return [self._gradient(total, last=total is sums[-1]) for total in sums]

    def _gradient(self, loss: Tensor, *, last: bool) -> list[Tensor]:
        found = torch.autograd.grad(loss, self.parameters, retain_graph=not last, allow_unused=True)
        return distributed.mean_row(filled(found, self.parameters))

    def _shares(self) -> list[Tensor]:
        """Returns what this rank adds to each loss, so that the mean over ranks is the loss."""
        sums = loss_sums(self.network, self.tasks, self.batch, list(self.tasks))
        world = distributed.world_size()
        return [
            total * (task.scale * world / max(1, count))
            for total, task, count in zip(sums, self.tasks.values(), self.counts, strict=True)
        ]

    @contextmanager
    def _moved(self, change: Sequence[Tensor]) -> Iterator[None]:
        with moved(self.network, self.parameters if change else [], change):
            reseed(self.seed, self.parameters[0].device)
            yield


def rates_of(optimiser: Optimizer, parameters: Sequence[nn.Parameter]) -> list[float]:
    """Returns the present learning rate of every parameter."""
    rates = {id(p): float(group["lr"]) for group in optimiser.param_groups for p in group["params"]}
    return [rates[id(p)] for p in parameters]
