"""Directions that project equally on every task's unit gradient, as `imtl_g`, `imtl` and `config` need."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_projections(gramian: Tensor, precision: torch.dtype = torch.float64) -> Tensor:
    """Returns weights v (A,) with ⟨Σ_j v_j g_j, g_i⟩ = ‖g_i‖ for every task i, or their least-squares approximation.

    The solution is v_i = p_i / ‖g_i‖ with p = C⁺ 1, where C is the matrix of cosines. Unlike the pseudo-inverse of the
    Gramian, that of the cosines does not mistake a small gradient for a dependent one, and the direction Σ v_i g_i does
    not change when a task is scaled. A task with a zero gradient has v_i = 0. All weights are 0 if no common direction
    exists.

    Args:
        gramian: (A, A) float64.
        precision: Data type in which the gradients were computed. It sets the tolerance for linear dependence.

    Example:
        >>> unit_projections(torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.float64))
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    norms = gramian.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    cosines = inverse[:, None] * gramian * inverse
    tolerance = max(1e-10, 10 * len(gramian) * torch.finfo(precision).eps)
    p = torch.linalg.pinv(cosines, rtol=tolerance, hermitian=True).sum(1)
    reached = (cosines @ p).mean()  # From 0, where gradients cancel, to 1, where all projections are equal.
    return inverse * p * (reached > tolerance)
