"""Nash-MTL: the bargaining solution of the tasks, which maximises the product of their improvements."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules import solvers
from mtlbench.errors import MethodError


class NashMTL(GradientRule):
    """Multi-task learning as a bargaining game (https://arxiv.org/abs/2202.01017, ICML 2022).

    Rule: d = Σ_i α_i g_i, where α > 0 solves M α = 1 / α, so that α_i ⟨g_i, d⟩ = 1 for every task.

    Symbols: g_i gradient of task i with respect to the shared parameters, averaged over all ranks; M = G Gᵀ.

    Args:
        update_every: Steps between two solutions. α is kept in between. The official code's default is 1.
        max_norm: Largest norm of the direction; 0, the default, for no limit. The official code uses 1.0. Here the
            suite clips gradients (``trainer.clip``) for every method alike.
        **conventions: ``scale`` and ``heads``; see `GradientRule`. α is inverse to the size of the gradients, so its
            sum is not fixed: with ``"sum"`` d is as above and ‖d‖ = √T whatever the gradients are (orthogonal ones of
            length 1 give the plain sum); with ``"mean"`` it is divided by T. The official code weighs the heads too.

    Differences from the official code: one convex problem, ½ αᵀMα - Σ ln α_i, solved by Newton steps, instead of at
    most 20 linearised ones. The official code divides M by its Frobenius norm and keeps that factor in α, so its d has
    the same direction but the length √(T ‖M‖_F) before clipping (directions agree to 7e-7); here ‖d‖ = √T. A zero
    gradient has weight 0. In full conflict (a convex combination of the gradients is zero) no finite α exists:
    eigenvalues of the cosine matrix are raised to at least 1e-8, in float32 1e-6. Below that bound α is approximate and
    may vary by several per cent with the order of the tasks. ``update_every`` saves only the solution, because d still
    needs all gradients. A task that appears for the first time between two solutions triggers a new one.

    Example:
        >>> import torch
        >>> NashMTL().direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.5412, 1.3066])
    """

    VERSION = 2  # 2: the smallest eigenvalue follows the precision of the gradients.
    TAXONOMY = "optimisation/gradient modulation"

    alpha: Tensor

    def __init__(self, update_every: int = 1, max_norm: float = 0.0, **conventions: Any):
        super().__init__(**conventions)
        if not update_every >= 1:
            raise MethodError(f"nash_mtl: update_every must be at least 1. Found {update_every}. The default is 1.")
        if not max_norm >= 0:
            raise MethodError(f"nash_mtl: max_norm must be positive, or 0 for none. Found {max_norm}.")
        self.update_every, self.max_norm = update_every, max_norm

    def configure(self, tasks: int) -> None:
        """Creates the last α (NaN until known)."""
        super().configure(tasks)
        self.register_buffer("alpha", torch.full((tasks,), float("nan")))

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns α (A,), new or kept, limited by ``max_norm``."""
        weights = self.scaled(self._alpha(gramian, ctx), len(gramian), natural="sum")
        norm = (weights @ gramian @ weights).clamp(min=0).sqrt()
        return weights * self.max_norm / norm if 0 < self.max_norm < norm else weights

    def _alpha(self, gramian: Tensor, ctx: Context) -> Tensor:
        active = list(ctx.active)
        if ctx.step % self.update_every:
            kept = self.alpha[active].to(gramian)
            if not kept.isnan().any():
                return kept
        found = torch.from_numpy(solvers.alpha_fair(gramian.detach().numpy(), 1.0, torch.finfo(ctx.losses.dtype).eps))
        self.alpha[active] = found.to(self.alpha)
        return found
