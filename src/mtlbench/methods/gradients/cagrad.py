"""CAGrad: maximises the smallest improvement of any task within a ball around the mean gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules import solvers
from mtlbench.errors import MethodError, unknown_name

RESCALE = ("none", "squared", "linear")


class CAGrad(GradientRule):
    """Conflict-averse gradient descent (https://arxiv.org/abs/2110.14048, NeurIPS 2021).

    Rule: d maximises min_i ⟨g_i, d⟩ over ‖d - ḡ‖ ≤ c ‖ḡ‖. That is d = ḡ + c ‖ḡ‖ · g_w / ‖g_w‖, where w minimises
    ⟨ḡ, g_w⟩ + c ‖ḡ‖ ‖g_w‖ over w ≥ 0, Σ_i w_i = 1.

    Symbols: g_i gradient of task i with respect to the shared parameters, averaged over all ranks; ḡ their mean,
    g_w = Σ_i w_i g_i.

    Args:
        c: Radius of the ball in units of ‖ḡ‖, in [0, 1). The paper's NYU-v2 runs use 0.4, which is the default here;
            LibMTL has 0.5. 0 is the mean gradient.
        rescale: ``"none"`` (the paper's rule), ``"squared"`` (divides d by 1 + c²; mode 1 of the published codes) or
            ``"linear"`` (by 1 + c; mode 2).
        **conventions: ``scale`` (the rule's own is ``"mean"``) and ``heads``; see `GradientRule`.

    Differences from the official code: w is exact instead of found by SLSQP, and no 1e-8 is added to norms. The
    official code uses mode 1 by default and multiplies d by the number of tasks, which is ``scale="sum"`` here. A zero
    gradient affects ḡ only. Near stationarity (‖g_w‖ below 1e-4 of Σ w_i ‖g_i‖, in float32 below 1e-2) the formula
    would divide by rounding errors, so d is found by another method. Among directions that are equally good up to
    rounding, the one closest to ḡ is used. A Gramian squares the condition number, so a combination of unit gradients
    that is shorter than about 1e-8 (in float32 3e-4) cannot be distinguished from zero.

    Example:
        >>> import torch
        >>> CAGrad(c=0.5, scale="mean").direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.2500, 0.5000])
    """

    VERSION = 2  # 2: exact near stationarity.
    TAXONOMY = "optimisation/gradient modulation"
    SEARCH = {"c": [0.2, 0.4, 0.6, 0.8]}

    def __init__(self, c: float = 0.4, rescale: str = "none", **conventions: Any):
        super().__init__(**conventions)
        if not 0 <= c < 1:
            raise MethodError(f"cagrad: c must be in [0, 1). Found {c}. The default is 0.4.")
        if rescale not in RESCALE:
            raise MethodError(f"cagrad: {unknown_name('rescale', rescale, RESCALE)}")
        self.c, self.rescale = c, rescale

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns weights (A,), the sum of those of the mean and of the worst mixture."""
        weights = torch.from_numpy(
            solvers.conflict_averse(gramian.detach().numpy(), self.c, torch.finfo(ctx.losses.dtype).eps)
        )
        divisor = {"none": 1.0, "squared": 1 + self.c**2, "linear": 1 + self.c}[self.rescale]
        return self.scaled(weights / divisor, len(gramian), natural="mean")
