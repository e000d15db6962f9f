"""UPGrad: projects every gradient onto the directions in which no task gets worse, and averages the results."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules import solvers
from mtlbench.errors import MethodError


class UPGrad(GradientRule):
    """Jacobian descent for multi-objective optimization (https://arxiv.org/abs/2406.16232, 2024).

    Rule: d = 1/T Σ_i π(g_i), where π projects onto {d : ⟨g_j, d⟩ ≥ 0 for all j}. By duality the weights are
    Σ_i argmin vᵀMv over v ≥ e_i / T.

    Symbols: g_i gradient of task i with respect to the shared parameters, averaged over all ranks; M = G Gᵀ;
    e_i unit vector.

    Args:
        reg: Constant added to the diagonal of M / trace M. The paper's code uses 1e-4. With 0, ⟨g_j, d⟩ ≥ 0 holds up to
            rounding in float64. In float32 it can fail near full conflict, where weights become large and their
            products with float32 gradients cancel.
        **conventions: ``scale`` (the rule's own is ``"mean"``) and ``heads``; see `GradientRule`.

    Differences from the official code (TorchJD): the problem is solved by an active set on a factor of M instead of
    quadprog, and a Gramian with a trace below 1e-4 does not count as zero.

    Example:
        >>> import torch
        >>> UPGrad(reg=0.0, scale="mean").direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.2500, 0.7500])
    """

    TAXONOMY = "optimisation/multi-objective"

    def __init__(self, reg: float = 1e-4, **conventions: Any):
        super().__init__(**conventions)
        if not 0 <= reg < math.inf:
            raise MethodError(f"upgrad: reg must be at least 0 and finite. Found {reg}. The default is 1e-4.")
        self.reg = reg

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns the sum (A,) of the weights of all projections."""
        matrix = solvers.regularised(gramian.detach().numpy(), self.reg)
        projections = solvers.dual_cone(matrix, np.eye(len(matrix)) / len(matrix))
        return self.scaled(torch.from_numpy(projections.sum(0)), len(gramian), natural="mean")
