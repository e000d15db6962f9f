"""FairGrad: α-fair improvement of the tasks, where α ranges from the mean over bargaining to the worst task."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules import solvers
from mtlbench.errors import MethodError


class FairGrad(GradientRule):
    """Fair resource allocation in multi-task learning (https://arxiv.org/abs/2402.15638, ICML 2024).

    Rule: d = Σ_i w_i g_i, where w > 0 solves M w = w^(-1/α), so that ⟨g_i, d⟩ = w_i^(-1/α) for every task.

    Symbols: g_i gradient of task i with respect to the shared parameters, averaged over all ranks; M = G Gᵀ.

    Args:
        alpha: α, at least 0.1. A larger value gives more weight to the task that improves least. All released runs use
            2, and LibMTL uses 1. With 1 the rule is that of Nash-MTL.
        **conventions: ``scale`` and ``heads``; see `GradientRule`. w depends on the size of the gradients, so its sum
            is not fixed: with ``"sum"`` d is as above (orthogonal gradients of length 1 give the plain sum); with
            ``"mean"`` it is divided by T. The official code multiplies d by T, and weighs the heads too.

    Differences from the official code: a convex problem is solved by Newton steps instead of bounded least squares. A
    zero gradient has weight 0. In full conflict (a convex combination of the gradients is zero) no finite w exists, so
    eigenvalues of the cosine matrix are raised to at least 1e-8, in float32 1e-6. Below that bound w is approximate
    and may vary by several per cent with the order of the tasks.

    Example:
        >>> import torch
        >>> FairGrad().weights(torch.diag(torch.tensor([1.0, 4.0])))
        tensor([1.0000, 0.3969])
    """

    VERSION = 2  # 2: the smallest eigenvalue follows the precision of the gradients.
    TAXONOMY = "optimisation/gradient modulation"
    SEARCH = {"alpha": [1.0, 2.0, 5.0]}

    def __init__(self, alpha: float = 2.0, **conventions: Any):
        super().__init__(**conventions)
        if not 0.1 <= alpha < math.inf:
            raise MethodError(f"fairgrad: alpha must be finite and at least 0.1. Found {alpha}.")
        self.alpha = alpha

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns the weights (A,) that solve the rule's equation."""
        weights = torch.from_numpy(
            solvers.alpha_fair(gramian.detach().numpy(), self.alpha, torch.finfo(ctx.losses.dtype).eps)
        )
        return self.scaled(weights, len(gramian), natural="sum")
