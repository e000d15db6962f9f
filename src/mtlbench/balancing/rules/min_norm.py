"""The rule shared by `mgda` (gradients of the shared parameters) and `mgda_ub` (of the representation)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules import solvers
from mtlbench.errors import MethodError, unknown_name

NORMALISE = ("none", "l2", "loss", "loss+")


class MinNorm(GradientRule):
    """Convex combination of the normalised gradients with the smallest norm.

    Args:
        normalise: Divisor of each gradient before the search: ``"none"``, ``"l2"`` ‖g_i‖, ``"loss"`` L_i, or
            ``"loss+"`` L_i ‖g_i‖.
        **conventions: See `GradientRule`.
    """

    SEARCH = {"normalise": ["none", "l2", "loss+"]}

    def __init__(self, normalise: str = "none", **conventions: Any):
        super().__init__(**conventions)
        if normalise not in NORMALISE:
            raise MethodError(f"{type(self).__name__}: {unknown_name('normalise', normalise, NORMALISE)}")
        self.normalise = normalise

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns weights (A,) of the original gradients."""
        matrix = gramian.detach().numpy()
        divisors = self._divisors(solvers.lengths(matrix), ctx)
        weights = solvers.min_norm(matrix / np.outer(divisors, divisors)) / divisors
        return self.scaled(torch.from_numpy(weights), len(gramian), natural="mean")

    def _divisors(self, norms: solvers.Array, ctx: Context) -> solvers.Array:
        divisors = norms if self.normalise in ("l2", "loss+") else np.ones_like(norms)
        if self.normalise in ("loss", "loss+"):
            losses = ctx.losses.detach().double().cpu().numpy()
            if (losses < 0).any():
                raise MethodError(
                    f"{type(self).__name__}: normalise={self.normalise!r} divides by the losses, which must not be "
                    f"negative. Found {losses.tolist()}. Use 'none' or 'l2'."
                )
            divisors = divisors * losses
        return np.where(divisors > 0, divisors, 1.0)  # A zero gradient or loss has no scale to divide by.
