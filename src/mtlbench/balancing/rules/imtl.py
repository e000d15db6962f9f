"""The two parts of impartial multi-task learning: loss balance (`imtl_l`) and gradient balance (`imtl_g`)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.balancing.rules.equal_projection import unit_projections


def log_scaled(losses: Tensor, s: Tensor) -> Tensor:
    """Returns Σ_i (e^{s_i} L_i - s_i), whose minimum over s makes every scaled loss e^{s_i} L_i equal to 1.

    Args:
        losses: (A,).
        s: (A,) logarithms of the loss weights.

    Example:
        >>> log_scaled(torch.tensor([4.0, 1.0]), torch.tensor([0.0, 0.0]))
        tensor(5.)
    """
    return (torch.exp(s) * losses - s).sum()


def equal_projections(gramian: Tensor, precision: torch.dtype = torch.float64) -> Tensor:
    """Returns weights w (A,) of sum 1 whose direction has the same projection on every task's unit gradient.

    Weights may be negative. All weights are 0 if no such direction exists or if its weights sum to 0.

    Args:
        gramian: (A, A) float64.
        precision: Data type in which the gradients were computed.

    Example:
        >>> equal_projections(torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64))
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """
    v = unit_projections(gramian, precision)
    total = v.sum()
    return torch.where(total.abs() > 1e-10 * v.abs().sum(), v / total, 0.0)
