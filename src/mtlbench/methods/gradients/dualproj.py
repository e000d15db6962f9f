"""DualProj: projects the mean gradient onto the directions in which no task gets worse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules import solvers
from mtlbench.errors import MethodError


class DualProj(GradientRule):
    """Gradient episodic memory (https://arxiv.org/abs/1706.08840, NeurIPS 2017), applied to the mean gradient.

    Rule: d = π(ḡ), where π projects onto {d : ⟨g_j, d⟩ ≥ 0 for all j}. By duality the weights minimise vᵀMv over
    v ≥ 1/T.

    Symbols: g_i gradient of task i with respect to the shared parameters, averaged over all ranks; ḡ their mean,
    M = G Gᵀ.

    Args:
        reg: Constant added to the diagonal of M / trace M. TorchJD uses 1e-4. With 0, ⟨g_j, d⟩ ≥ 0 holds up to rounding
            in float64. In float32 it can fail near full conflict, where weights become large and their products with
            float32 gradients cancel.
        **conventions: ``scale`` (the rule's own is ``"mean"``) and ``heads``; see `GradientRule`.

    Differences: the paper projects the gradient of the newest task and constrains it by those of earlier tasks. For
    tasks that are trained together, the mean is projected instead, as in TorchJD and the UPGrad paper. The problem is
    solved by an active set on a factor of M, and a Gramian with a trace below 1e-4 does not count as zero.

    Example:
        >>> import torch
        >>> DualProj(reg=0.0, scale="mean").direction(torch.tensor([[1.0, 0.0], [-4.0, 1.0]]))
        tensor([0.0000, 0.5000])
    """

    TAXONOMY = "optimisation/multi-objective"

    def __init__(self, reg: float = 1e-4, **conventions: Any):
        super().__init__(**conventions)
        if not 0 <= reg < math.inf:
            raise MethodError(f"dualproj: reg must be at least 0 and finite. Found {reg}. The default is 1e-4.")
        self.reg = reg

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns the weights (A,) of the projected mean."""
        matrix = solvers.regularised(gramian.detach().numpy(), self.reg)
        (weights,) = solvers.dual_cone(matrix, np.full((1, len(matrix)), 1 / len(matrix)))
        return self.scaled(torch.from_numpy(weights), len(gramian), natural="mean")
