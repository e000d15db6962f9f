"""Inverse gradient norm: scales every task's gradient to the same length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.errors import MethodError


class InverseGradientNorm(GradientRule):
    """Revisit the imbalance optimization in multi-task learning (https://arxiv.org/abs/2509.23915, 2025).

    The paper finds the rule close to a grid search for fixed weights.

    Rule: d = κ Σ_i g_i / n_i, n_i ← β n_i + (1 - β) ‖g_i‖.

    Symbols: g_i gradient of task i with respect to the shared parameters, averaged over all ranks; n_i its norm,
    smoothed; κ makes the weights κ / n_i sum to the number of tasks with a label.

    Args:
        beta: β in [0, 1), smoothing of the norms. 0, no smoothing, is the paper's rule. n_i starts with the first norm.
        **conventions: ``scale`` (``"mean"``: the weights sum to 1) and ``heads``; see `GradientRule`.

    Differences from the paper: its common length is ‖Σ_i g_i‖ and its gradients are those of the last shared layer;
    here the weights have a fixed sum, as those of other rules, and all shared parameters count. A task whose
    gradient is zero has weight 0 in that step and keeps its n_i.

    Example:
        >>> import torch
        >>> InverseGradientNorm().direction(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        tensor([1.5000, 1.5000])
    """

    TAXONOMY = "optimisation/gradient modulation"
    SEARCH = {"beta": [0.0, 0.9]}

    norms: Tensor

    def __init__(self, beta: float = 0.0, **conventions: Any):
        super().__init__(**conventions)
        if not 0 <= beta < 1:
            raise MethodError(f"inverse_gradient_norm: beta must be in [0, 1). Found {beta}. The default is 0.")
        self.beta = beta

    def configure(self, tasks: int) -> None:
        """Creates the smoothed norms (NaN until known)."""
        super().configure(tasks)
        self.register_buffer("norms", torch.full((tasks,), float("nan")))

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns weights (A,) in inverse proportion to the norms."""
        norms = gramian.diagonal().clamp(min=0).sqrt()
        if self.beta:
            norms = self._smoothed(norms, list(ctx.active))
        inverse = torch.where(norms > 0, 1 / norms, 0.0)
        weights = torch.nan_to_num(inverse / inverse.sum())  # All gradients zero: 0 / 0.
        return self.scaled(weights, len(gramian), natural="mean")

    def _smoothed(self, norms: Tensor, active: list[int]) -> Tensor:
        """Updates and returns the smoothed norms, with 0 for a zero gradient."""
        old = self.norms[active].to(norms)
        new = torch.where(old.isnan(), norms, self.beta * old + (1 - self.beta) * norms)
        self.norms[active] = torch.where(norms > 0, new, old).to(self.norms)
        return torch.where(norms > 0, new, 0.0)
