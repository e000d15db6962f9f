"""DB-MTL: smooths the gradients of log losses over steps, scales them to the largest norm and adds them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlbench.balancing.base import Context
from mtlbench.balancing.rules.stateful import MemoryRule
from mtlbench.errors import MethodError


class DBMTL(MemoryRule):
    """Dual-balancing for multi-task learning (https://arxiv.org/abs/2308.12029).

    Rule: g_i = ∇ log L_i; b_i ← g_i + β_n (b_i - g_i) with β_n = β / n^σ; d = Σ_i (max_j ‖b_j‖ / ‖b_i‖) b_i.

    Symbols: b (T, P) smoothed gradients, initially 0; n number of the step, starting at 1.

    Args:
        beta: β, in [0, 1); 0.9 is LibMTL's default.
        sigma: σ, at least 0; 0 is LibMTL's default.
        skip_first: Whether b_i starts with the first g_i of the task. Otherwise b_i starts with (1 - β) g_i, as in
            LibMTL, and the first directions are short.
        scale: See `GradientRule`; the rule's own is ``"sum"``.

    Differences from LibMTL: no 10⁻⁸ is added inside the logarithms, so every loss must be above 0. A zero b_i is left
    out instead of divided by 10⁻⁸. A task without labels keeps its b_i and takes no part in the step. As in LibMTL,
    heads get ∇ log L_i, so the loss weights 1 / L_i apply to them too. Memory and every checkpoint hold T × P further
    numbers.

    Example:
        >>> import torch
        >>> DBMTL(beta=0.0).direction(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([3., 9.])
    """

    TAXONOMY = "optimisation/gradient modulation"
    SEARCH = {"beta": [0.1, 0.5, 0.9], "sigma": [0.0, 0.5]}
    POSITIVE = True

    seen: Tensor

    def __init__(self, beta: float = 0.9, sigma: float = 0.0, skip_first: bool = False, *, scale: str = "sum"):
        super().__init__(scale=scale)
        if not 0 <= beta < 1:
            raise MethodError(f"db_mtl: beta must be in [0, 1). Found {beta}. The default is 0.9.")
        if not 0 <= sigma < math.inf:
            raise MethodError(f"db_mtl: sigma must be at least 0 and finite. Found {sigma}. The default is 0.")
        self.beta, self.sigma, self.skip_first = beta, sigma, skip_first

    def configure(self, tasks: int) -> None:
        """Creates the smoothed gradients, and the flags of tasks that have had a label."""
        super().configure(tasks)
        self.register_buffer("seen", torch.zeros(tasks, dtype=torch.bool))

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns Σ log L_i of (A,) losses."""
        return losses.log().sum()

    def combine_gradients(self, jacobian: Tensor, ctx: Context) -> Tensor:
        """Returns the direction (P,) from the (A, P) gradients of log losses; updates b."""
        smoothed, active = self.recall(jacobian, self.tasks, jacobian.shape[1]), list(ctx.active)
        for i, row, new in zip(active, jacobian, self._new_share(jacobian, ctx), strict=True):
            smoothed[i].lerp_(row, new)  # In place and row by row, without a second (A, P) matrix.
        norms = torch.stack([self.norm(smoothed[i]) for i in active])
        weights = torch.where(norms > 0, norms.max() / norms, 0.0)
        return self.blend(self.scaled(weights, len(active), natural="sum"), active)

    def _new_share(self, like: Tensor, ctx: Context) -> Tensor:
        """Returns 1 - β_n per active task (A,)."""
        active = list(ctx.active)
        share = like.new_full((len(active),), 1 - self.beta / (ctx.step + 1) ** self.sigma)
        if self.skip_first:
            share = torch.where(self.seen[active], share, 1.0)
            self.seen[active] = True
        return share
