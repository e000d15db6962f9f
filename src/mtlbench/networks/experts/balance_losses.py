"""Losses on tables of tasks by experts: mutual information and load balance."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.errors import MethodError


def mutual_information(table: Tensor, prior: Tensor | None = None) -> Tensor:
    """Returns I(T; E) = H(E) − H(E | T) in nats, 0 <= I <= log min(T, E) (Mod-Squad, arXiv:2212.08066).

    Mod-Squad's loss is −I, summed over layers.

    Args:
        table: (T, E), rows P(E | t) that sum to 1. Exact zeros are allowed. Their gradient is clamped, because the true
            one is infinite.
        prior: (T,), P(t), summing to 1; None for 1 / T. Rows of tasks with prior 0 are ignored.

    Raises:
        MethodError: The shapes do not fit.

    Example:
        >>> round(mutual_information(torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])).item(), 4)
        0.6931
    """
    if table.ndim != 2 or (prior is not None and prior.shape != table.shape[:1]):
        found = None if prior is None else tuple(prior.shape)
        raise MethodError(
            f"Mutual information needs a (T, E) table and a (T,) prior or None. Found {tuple(table.shape)} and {found}."
        )
    table = table.to(torch.promote_types(table.dtype, torch.float32))
    weights = table.new_full(table.shape[:1], 1 / len(table)) if prior is None else prior.to(table)
    return _entropy(weights @ table) - weights @ _entropy(table)


def load_balance(probability: Tensor, load: Tensor, prior: Tensor) -> Tensor:
    """Returns E · Σ_e f_e · P_e of the mixture of tasks, 1 if balanced (Switch transformer, arXiv:2101.03961, eq. 4).

    f and P are averaged over tasks *before* they are multiplied. Balancing each task separately would spread every task
    over all experts, as `task_balance` does.

    Args:
        probability: (T, E), P(E | t), with gradient.
        load: (T, E), share of choices, detached.
        prior: (T,), weights of the tasks, summing to 1.
    """
    return probability.shape[1] * ((prior @ load).detach() * (prior @ probability)).sum()


def task_balance(probability: Tensor, load: Tensor, prior: Tensor) -> Tensor:
    """Returns the mean over tasks of E · Σ_e f_te · P_te, which pushes every task to use all experts.

    Args:
        probability: (T, E), P(E | t), with gradient.
        load: (T, E), share of choices, detached.
        prior: (T,), weights of the tasks, summing to 1.
    """
    return probability.shape[1] * (prior @ (load.detach() * probability).sum(1))


def importance_variation(importance: Tensor, prior: Tensor) -> Tensor:
    """Returns the mean over tasks of CV² = Var / mean² of the experts' mean gates (arXiv:1701.06538, eq. 6–7).

    Args:
        importance: (T, E), mean gate, with gradient.
        prior: (T,), weights of the tasks, summing to 1.
    """
    if importance.shape[1] == 1:
        return importance.sum() * 0  # One expert has no variation. The product keeps the graph.
    mean = importance.mean(1).clamp_min(torch.finfo(importance.dtype).tiny ** 0.5)
    return prior @ (importance.var(1) / mean.square())


def _entropy(rows: Tensor) -> Tensor:
    # Only the logarithm is clamped, so that the value at 0 is exactly 0 and the derivative is finite.
    tiny = torch.finfo(rows.dtype).tiny
    return -(rows * rows.clamp_min(tiny).log()).sum(-1)
