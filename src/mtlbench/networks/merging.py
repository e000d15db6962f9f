"""Merging networks of the same form that started from the same weights: task vectors and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlbench.networks.base import MTLNetwork


def shared_values(network: MTLNetwork, tasks: Sequence[str], *, trained: bool) -> dict[str, Tensor]:
    """Returns the tensors that several tasks can share, by name: parameters, or running means and the like.

    Args:
        network: The network.
        tasks: Its tasks, whose own modules are left out.
        trained: Parameters if true; otherwise buffers of floating-point numbers.
    """
    owned = {id(t) for task in tasks for m in network.task_modules(task) for t in (*m.parameters(), *m.buffers())}
    found = network.named_parameters() if trained else network.named_buffers()
    return {name: t for name, t in found if id(t) not in owned and t.is_floating_point()}


def task_arithmetic(changes: Tensor, scale: float) -> Tensor:
    """Returns λ Σ_i τ_i (P,).

    Args:
        changes: Task vectors τ (T, P).
        scale: λ.

    Example:
        >>> task_arithmetic(torch.tensor([[3.0, -1.0], [-2.0, -2.0]]), 0.5)
        tensor([ 0.5000, -1.5000])
    """
    return scale * changes.sum(0)


def ties(changes: Tensor, keep: float, scale: float) -> Tensor:
    """Returns λ times the mean of the large entries that agree with the sign of their sum (P,); 0 where there are none.

    Args:
        changes: Task vectors τ (T, P).
        keep: Share of the entries of every τ that is kept, the largest ones; in (0, 1].
        scale: λ.

    Example:
        >>> ties(torch.tensor([[3.0, -1.0, 0.5, 2.0], [-2.0, -2.0, 0.1, 1.0]]), 0.5, 1.0)
        tensor([ 3., -2.,  0.,  2.])
    """
    count = max(1, round(keep * changes.shape[1]))
    total, agreeing = torch.zeros_like(changes[0]), torch.zeros_like(changes[0])
    # Trimmed once for the sign and once for the mean: a second (T, P) matrix would double the memory.
    sign = sum((_largest(row, count) for row in changes), torch.zeros_like(changes[0])).sign()
    for row in changes:
        kept = _largest(row, count)
        kept = torch.where(kept.sign() == sign, kept, 0.0)
        total += kept
        agreeing += kept != 0
    return scale * total / agreeing.clamp(min=1)


def _largest(row: Tensor, count: int) -> Tensor:
    """Returns a vector whose entries below the ``count``-th largest size are 0."""
    sizes = row.abs()
    least = sizes.kthvalue(len(row) - count + 1).values
    return torch.where(sizes >= least, row, 0.0)
