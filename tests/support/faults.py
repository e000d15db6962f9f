"""Deliberately faulty methods and data modules that contract checks must catch; importable on a pool's ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

from mtlbench import balancing, distributed, testing
from mtlbench.balancing.gradients import update
from mtlbench.balancing.losses import ReducedLosses
from mtlbench.method import MTLMethod, step


class OwnDraws(balancing.Balancer):
    """Draws from the global generator, which differs between ranks."""

    def combine_gradients(self, jacobian, ctx):
        return torch.rand(len(jacobian)).to(jacobian) @ jacobian


class Forgetful(balancing.Balancer):
    """Keeps a number that no checkpoint stores."""

    steps = 0

    def combine_losses(self, losses, ctx):
        return losses.sum() * (1 + self.steps)

    def after_step(self, ctx):
        self.steps += 1


class OwnNoise(testing.ToyData):
    """Augments from the global generator."""

    def augment(self, sample, generator):
        noise = torch.randint(0, 9, sample["image"].shape, dtype=torch.uint8)
        return {**sample, "image": sample["image"] // 2 + noise}


class OwnCrop(testing.ToyData):
    """Changes labels by NumPy's global generator, and leaves images alone."""

    def augment(self, sample, generator):
        return {**sample, "targets": {name: t + np.random.randint(1000) for name, t in sample["targets"].items()}}


class Unstable(testing.ToyData):
    """Reads a different image every time."""

    def samples(self, split):
        inner, reads = super().samples(split), self

        class Read:
            def __len__(self):
                return len(inner)

            def __getitem__(self, index):
                reads.count = getattr(reads, "count", 0) + 1
                return {**inner[index], "image": inner[index]["image"] + reads.count}

        return Read()


_reduce = update.reduce


def _no_reduction(surgery, collected, scale):
    with mock.patch.multiple(distributed, mean_=lambda tensor: tensor, mean_row=lambda row: row):
        return _reduce(surgery, collected, scale)


def _rows_only(surgery, collected, scale):
    with mock.patch.object(distributed, "mean_row", lambda row: row):
        return _reduce(surgery, collected, scale)


def _local_counts(sums, counts, scales):
    """Divides by each rank's own count, as a plain mean over the batch does."""
    everywhere = distributed.sum_counts(counts, sums.device)
    own = tuple(max(1, count) if total else 0 for count, total in zip(counts, everywhere, strict=True))
    return ReducedLosses(sums.detach().clone(), own, tuple(s / distributed.world_size() for s in scales))


_step_hook = MTLMethod.on_before_optimizer_step


def _zero_for_absent(self, optimizer):
    _step_hook(self, optimizer)
    for parameter in self.network.parameters():
        if parameter.grad is None and parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


FAULTS: dict[str, Any] = {
    "none": (update, "reduce", update.reduce),
    "gradients stay local": (update, "reduce", _no_reduction),
    "heads stay local": (update, "reduce", _rows_only),
    "zeros for absent heads": (MTLMethod, "on_before_optimizer_step", _zero_for_absent),
    "means of means": (step, "reduce_losses", _local_counts),
}


@contextmanager
def fault(name: str) -> Iterator[None]:
    owner, attribute, replacement = FAULTS[name]
    with mock.patch.object(owner, attribute, replacement):
        yield


def trained_with(name: str, spec: Any, folder: str, **options: Any) -> Any:
    with fault(name):
        return testing.trained(spec, folder, **options)
