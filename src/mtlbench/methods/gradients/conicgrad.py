"""ConicGrad: the direction that helps the worst task most within a cone around the mean gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules.solvers import best_in_cone
from mtlbench.errors import MethodError


class ConicGrad(GradientRule):
    """Conic conflict-averse gradient descent (https://arxiv.org/abs/2502.00217, 2025).

    Rule: d maximises min_i ⟨g_i, d⟩ over all d of length ‖ḡ‖ whose angle with ḡ has a cosine of at least c; d = ḡ
    where that maximum is not above 0.

    Symbols: g_i gradient of task i with respect to the shared parameters, averaged over all ranks; ḡ their mean.

    Args:
        c: Least cosine, in [0, 1]. 1 is the mean gradient; 0 is the direction of `mgda` at the length of ḡ, unless it
            turns more than 90° away from ḡ. The paper's value is unknown to us.
        **conventions: ``scale`` (the rule's own is ``"mean"``) and ``heads``; see `GradientRule`.

    Differences from the paper, of which only the summary was available: the problem is solved exactly for every step,
    where the paper moves dual weights gradually. The length of d is our choice. A maximum counts as 0 if the unit
    direction that attains it gains less than 1e-4 of the shortest gradient (in float32 about 1e-2): rounding would then
    decide. Weights may be negative.

    Example:
        >>> import torch
        >>> ConicGrad(c=0.5, scale="mean").weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([1., 0.25])
    """

    TAXONOMY = "optimisation/gradient modulation"
    SEARCH = {"c": [0.25, 0.5, 0.75, 0.9]}

    def __init__(self, c: float = 0.5, **conventions: Any):
        super().__init__(**conventions)
        if not 0 <= c <= 1:
            raise MethodError(f"conicgrad: c must be in [0, 1]. Found {c}. The default is 0.5.")
        self.c = c

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns the coefficients (A,) of the gradients in d."""
        weights = best_in_cone(gramian.detach().numpy(), self.c, torch.finfo(ctx.losses.dtype).eps)
        return self.scaled(torch.from_numpy(weights), len(gramian), natural="mean")
