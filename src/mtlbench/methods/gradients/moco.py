"""MoCo: tracks the gradients, and moves the weights gradually towards their shortest combination."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mtlbench.balancing.base import Context
from mtlbench.balancing.rules.simplex import project, read_share, write_share
from mtlbench.balancing.rules.stateful import MemoryRule
from mtlbench.errors import MethodError


class MoCo(MemoryRule):
    """Multi-objective gradient correction (https://arxiv.org/abs/2210.12624, ICLR 2023).

    Rule: y_i ← y_i - β_n (y_i - g_i); λ ← Π(λ - γ_n (y yᵀ + ρ I) λ); d = Σ_i λ_i y_i, with β_n = β / n^σ_β and
    γ_n = γ / n^σ_γ.

    Symbols: y (T, P) tracked gradients, initially 0; λ (T,) on the simplex, initially 1/T; Π projection onto the
    simplex; n number of the step, starting at 1.

    Args:
        beta: β, in (0, 1].
        beta_sigma: σ_β, at least 0.
        gamma: γ, at least 0; 0 keeps λ at 1/T.
        gamma_sigma: σ_γ, at least 0.
        rho: ρ, at least 0.
        normalise: Whether every gradient is first scaled to the length of its task's loss, as in LibMTL. Otherwise the
            effect of γ depends on the size of the gradients.
        scale: See `GradientRule`; the rule's own is ``"mean"``. Heads get their own gradients.

    The defaults are LibMTL's. The paper leaves them to the problem.

    Differences from LibMTL: LibMTL uses a softmax instead of the paper's projection. A task without labels keeps y_i
    and λ_i, and the others redistribute their total; in the step their weights are scaled to sum to 1. Memory and every
    checkpoint hold T × P further numbers.

    Example:
        >>> import torch
        >>> MoCo(beta=1.0).direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.1000, 0.9500])
    """

    TAXONOMY = "optimisation/multi-objective"
    SEARCH = {"beta": [0.1, 0.5], "gamma": [0.001, 0.01, 0.1], "normalise": [False, True]}

    shares: Tensor

    def __init__(
        self,
        beta: float = 0.5,
        beta_sigma: float = 0.5,
        gamma: float = 0.1,
        gamma_sigma: float = 0.5,
        rho: float = 0.0,
        normalise: bool = False,
        *,
        scale: str = "sum",
    ):
        super().__init__(scale=scale)
        if not 0 < beta <= 1:
            raise MethodError(f"moco: beta must be in (0, 1]. Found {beta}. The default is 0.5.")
        for name, value in (("beta_sigma", beta_sigma), ("gamma", gamma), ("gamma_sigma", gamma_sigma), ("rho", rho)):
            if not 0 <= value < math.inf:
                raise MethodError(f"moco: {name} must be at least 0 and finite. Found {value}.")
        self.beta, self.beta_sigma, self.gamma, self.gamma_sigma = beta, beta_sigma, gamma, gamma_sigma
        self.rho, self.normalise = rho, normalise

    def configure(self, tasks: int) -> None:
        """Creates y and λ."""
        super().configure(tasks)
        self.register_buffer("shares", torch.full((tasks,), 1 / tasks))

    def combine_gradients(self, jacobian: Tensor, ctx: Context) -> Tensor:
        """Returns the direction (P,) from the (A, P) Jacobian; updates y and λ."""
        tracked, active = self.recall(jacobian, self.tasks, jacobian.shape[1]), list(ctx.active)
        self._track(tracked, jacobian, ctx)
        gramian = self.remembered_gramian().cpu().numpy()[np.ix_(active, active)]
        share = read_share(self.shares, active)
        slope = gramian @ share + self.rho * share
        share = project(share - self.gamma / (ctx.step + 1) ** self.gamma_sigma * slope)
        write_share(self.shares, active, share)
        return self.blend(self.scaled(torch.from_numpy(share), len(active), natural="mean"), active)

    def _track(self, tracked: Tensor, jacobian: Tensor, ctx: Context) -> None:
        """Updates the tracked gradients of the active tasks in place, row by row, without a second (A, P) matrix."""
        beta = self.beta / (ctx.step + 1) ** self.beta_sigma
        if not self.normalise:
            for i, row in zip(ctx.active, jacobian, strict=True):
                tracked[i].lerp_(row, beta)
            return
        norms = torch.stack([self.norm(row) for row in jacobian])
        lengths = torch.where(norms > 0, ctx.losses.to(norms) / norms, 0.0).to(jacobian)
        for i, row, length in zip(ctx.active, jacobian, lengths, strict=True):
            tracked[i].mul_(1 - beta).addcmul_(row, length, value=beta)
