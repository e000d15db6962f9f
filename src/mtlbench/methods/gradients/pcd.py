"""PCD: follows the gradient of a primary task as closely as progress of all others allows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules.torchjd import PCDWeighting, Remembered
from mtlbench.errors import MethodError


class PCD(GradientRule):
    """Priority-constrained descent (https://arxiv.org/abs/2606.29521, TMLR 2026).

    Rule: with n_i = g_i / √(v_i + ε), find the d nearest to n_p under ⟨n_j, d⟩ ≥ τ ‖n_j‖² for all j ≠ p; the direction
    is d ‖g_p‖ / ‖d‖. If the constraints contradict each other, it is g_p; if g_p or d is zero, it is zero.

    Symbols: g_i gradient of task i with respect to the shared parameters, averaged over all ranks; p the primary task;
    v_i moving average of ‖g_i‖² with decay β, corrected for its start at 0.

    Args:
        primary: Position of the primary task p in the run's tasks, from 0.
        tau: τ in [0, 1]: the share of its own normalised progress that every other task is guaranteed.
        beta: β in [0, 1).
        eps: ε, at least 0.
        **conventions: ``scale`` (the rule's own is ``"mean"``: equal tasks give one of their gradients) and ``heads``;
            see `GradientRule`.

    Differences from the official code: the rule and its defaults are TorchJD's, which solves the quadratic program by
    an active set instead of an enumeration. A task without a label counts as one with a zero gradient, which lowers its
    v_i. If the primary task has none, all weights are 1.

    Example:
        >>> import torch
        >>> PCD(tau=0.5, scale="mean").direction(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([0.8944, 0.4472])
    """

    TAXONOMY = "optimisation/multi-objective"
    SEARCH = {"tau": [0.0, 0.02, 0.1, 0.5]}

    def __init__(self, primary: int = 0, tau: float = 0.02, beta: float = 0.999, eps: float = 1e-8, **conventions: Any):
        super().__init__(**conventions)
        if primary < 0:
            raise MethodError(f"pcd: primary is a position in the run's tasks, from 0. Found {primary}.")
        if not 0 <= tau <= 1:
            raise MethodError(f"pcd: tau must be in [0, 1]. Found {tau}. The default is 0.02.")
        if not 0 <= beta < 1:
            raise MethodError(f"pcd: beta must be in [0, 1). Found {beta}. The default is 0.999.")
        if not 0 <= eps < float("inf"):
            raise MethodError(f"pcd: eps must be at least 0 and finite. Found {eps}. The default is 1e-8.")
        self.primary, self.tau, self.beta, self.eps = primary, tau, beta, eps

    def configure(self, tasks: int) -> None:
        """Creates the rule, whose moving averages checkpoints carry.

        Raises:
            MethodError: If the run has no task at the position ``primary``.
        """
        super().configure(tasks)
        if self.primary >= tasks:
            raise MethodError(f"pcd: primary must be below the number of tasks, {tasks}. Found {self.primary}.")
        self._rule = Remembered(PCDWeighting(tau=self.tau, beta=self.beta, eps=self.eps))

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns weights (A,) of the gradients; moves the averages of their squared norms."""
        active = list(ctx.active)
        whole = gramian.new_zeros(self.tasks, self.tasks)
        whole[torch.tensor(active)[:, None], active] = gramian
        # TorchJD takes the first row as the primary one, and the precision of the gradients from the dtype.
        order = [self.primary, *(i for i in range(self.tasks) if i != self.primary)]
        found = self._rule(whole[order][:, order].to(ctx.losses.dtype)).double()
        if self.primary not in active:
            return self.scaled(torch.ones(len(active), dtype=torch.float64), len(active), natural="sum")
        weights = torch.empty_like(found)
        weights[order] = found
        return self.scaled(weights[active], len(active), natural="mean")
