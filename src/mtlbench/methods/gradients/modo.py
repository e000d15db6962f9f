"""MoDo: moves the weights towards the min-norm ones by one projected step per update, on independent batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules import simplex
from mtlbench.errors import MethodError


class MoDo(GradientRule):
    """Three-way trade-off in multi-objective learning (https://arxiv.org/abs/2305.20057, NeurIPS 2023).

    Rule: λ ← Π(λ - γ (G₁ G₂ᵀ λ + ρ λ)), d = G₃ᵀ λ with the new λ.

    Symbols: G_b gradients (T, P) of mini-batch b with respect to the shared parameters, averaged over all ranks; Π
    projection on the simplex {λ ≥ 0, Σ λ = 1}; λ starts at 1/T and is kept from step to step.

    Args:
        gamma: γ, step size of λ. LibMTL uses 0.001 and TorchJD 0.1. Its effect depends on the scale of the gradients.
        rho: ρ, weight of ‖λ‖² / 2.
        **conventions: ``scale`` (the rule's own is ``"mean"``) and ``heads``; see `GradientRule`.

    Differences from the official code: the batch is split in three instead of drawing three batches, so that data and
    epochs equal those of other methods. Absent tasks keep their λ_i, and the others redistribute their total. The
    weights of a step still sum to 1.

    Example:
        >>> import torch
        >>> MoDo(gamma=0.1, rho=0.0, scale="mean").weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]))
        tensor([0.5250, 0.4750])
    """

    TAXONOMY = "optimisation/multi-objective"
    SEARCH = {"gamma": [1e-4, 1e-3, 1e-2], "rho": [0.0, 0.1]}
    batches = 3

    task_weights: Tensor

    def __init__(self, gamma: float = 1e-3, rho: float = 0.1, **conventions: Any):
        super().__init__(**conventions)
        if not 0 < gamma < float("inf"):
            raise MethodError(f"modo: gamma must be above 0 and finite. Found {gamma}. The default is 0.001.")
        if not 0 <= rho < float("inf"):
            raise MethodError(f"modo: rho must be at least 0 and finite. Found {rho}. The default is 0.1.")
        self.gamma, self.rho = gamma, rho

    def configure(self, tasks: int) -> None:
        """Creates equal weights λ."""
        super().configure(tasks)
        self.register_buffer("task_weights", torch.full((tasks,), 1 / tasks))

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Moves λ by the cross-Gramian G₁ G₂ᵀ (A, A); returns it (A,)."""
        old = simplex.read_share(self.task_weights, ctx.active)
        new = simplex.project(old - self.gamma * (gramian.numpy() @ old + self.rho * old))
        simplex.write_share(self.task_weights, ctx.active, new)
        return self.scaled(torch.from_numpy(new), len(gramian), natural="mean")
