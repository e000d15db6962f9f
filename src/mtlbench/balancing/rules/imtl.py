"""The two parts of impartial multi-task learning: of losses (`imtl_l`, `imtl`) and of gradients (`imtl_g`, `imtl`)."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.balancing.rules.equal_projection import unit_projections


def log_scaled(losses: Tensor, s: Tensor) -> Tensor:
    """Returns Σ_i (e^{s_i} L_i - s_i), lowest over s where every scaled loss e^{s_i} L_i is 1.

    Args:
        losses: (A,).
        s: (A,) logarithms of the loss weights.

    Example:
        >>> log_scaled(torch.tensor([4.0, 1.0]), torch.tensor([0.0, 0.0]))
        tensor(5.)
    """
    return (torch.exp(s) * losses - s).sum()


def equal_projections(gramian: Tensor, precision: torch.dtype = torch.float64) -> Tensor:
    """Returns weights w (A,), Σ w = 1, whose direction has the same projection on every task's unit gradient.

    Weights may be negative. All are 0 where there is no such direction, or none with a sum other than 0.

    Args:
        gramian: (A, A) float64.
        precision: In which the gradients were computed.

    Example:
        >>> equal_projections(torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64))
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """
    v = unit_projections(gramian, precision)
    total = v.sum()
    return torch.where(total.abs() > 1e-10 * v.abs().sum(), v / total, 0.0)
