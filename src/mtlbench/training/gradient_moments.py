"""Size and noise of a stream's gradient, which some rules of task mixing follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtlbench import distributed
from mtlbench.data import Batch
from mtlbench.method import MTLMethod
from mtlbench.method.forward import label_counts, loss_sums
from mtlbench.training.evaluation import evaluating


def gradient_moments(method: MTLMethod, halves: Sequence[Batch]) -> tuple[float, float]:
    """Returns ‖∇L‖² and the variance of one sample's gradient, estimated without bias on two batches of equal size.

    L is the sum of the scaled mean losses of the tasks with a label in both batches, and gradients are those of the
    shared parameters, in evaluation mode. With gradients a and b of the batches of n samples each, the estimates are
    a · b, which may be negative, and n ‖a − b‖² / 2. Training goes on as if nothing had been measured.

    Args:
        method: Method in a trainer.
        halves: Two batches of one stream, the same on every rank. All ranks get the same numbers.
    """
    moved = [method.trainer.strategy.batch_to_device(half) for half in halves]
    counts = [dict(zip(method.tasks, label_counts(method.tasks, half), strict=True)) for half in moved]
    names = [name for name in method.tasks if all(found[name] for found in counts)]
    with evaluating(method), torch.enable_grad():
        one, other = (_gradient(method, half, names, found) for half, found in zip(moved, counts, strict=True))
    half_size = max(len(half["id"]) for half in halves)
    found = torch.stack([one @ other, half_size / 2 * (one - other).square().sum()])
    square, variance = distributed.mean_(found).tolist()
    return square, variance


def _gradient(method: MTLMethod, batch: Batch, names: Sequence[str], counts: Mapping[str, int]) -> Tensor:
    """Returns the gradient of the scaled mean losses of some tasks, as one vector in float64."""
    shared = method.network.shared_parameters(list(method.tasks))
    if not names or not shared:
        return torch.zeros(1, dtype=torch.float64, device=method.device)
    sums = loss_sums(method.network, method.tasks, batch, names)
    means = [method.tasks[name].scale / counts[name] * value for name, value in zip(names, sums, strict=True)]
    found = torch.autograd.grad(torch.stack(means).sum(), shared, materialize_grads=True, allow_unused=True)
    return torch.cat([gradient.flatten().double() for gradient in found])
