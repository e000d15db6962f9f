"""CR-MOGM: smooths the weights of another rule over the steps, which removes the bias of noisy weights."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import Context, GradientRule
from mtlbench.errors import MethodError, unknown_name

RULES = (
    "mgda",
    "pcgrad",
    "cagrad",
    "imtl_g",
    "aligned_mtl",
    "fairgrad",
    "upgrad",
    "dualproj",
    "config",
)
"""Rules on the Gramian of the shared gradients without state of their own."""


class CRMOGM(GradientRule):
    """Correlation-reduced multi-objective gradient manipulation (https://openreview.net/forum?id=ScwfQ7hdwyP, 2022).

    Rule: λ ← α λ + (1 - α) λ̂, d = Σ_i λ_i g_i; in the first step λ = λ̂.

    Symbols: λ̂ the weights that the wrapped rule gives to the gradients of the step; g_i gradient of task i with respect
    to the shared parameters, averaged over all ranks.

    Args:
        rule: The wrapped rule, with its own defaults: ``mgda``, ``pcgrad``, ``cagrad``, ``imtl_g``, ``aligned_mtl``,
            ``fairgrad``, ``upgrad``, ``dualproj`` or ``config``.
        alpha: α in [0, 1]. 0 is the wrapped rule; 1 keeps its first weights.
        scale: See `GradientRule`; it applies to the wrapped rule.
        heads: See `Balancer`.

    Differences from the paper: α is a constant, 0.9 as in TorchJD; the paper lets it grow to 1 as the learning rate
    falls. A task without a label keeps its λ_i; one that had none before starts at its first λ̂_i.

    Example:
        >>> import torch
        >>> rule = CRMOGM(alpha=0.5, scale="mean")
        >>> rule.weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]))
        tensor([0.6000, 0.4000])
        >>> rule.weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.7000, 0.3000])
    """

    TAXONOMY = "optimisation/multi-objective"
    SEARCH = {"alpha": [0.5, 0.9, 0.99], "rule": ["mgda", "pcgrad", "cagrad"]}

    smoothed: Tensor

    def __init__(self, rule: str = "mgda", alpha: float = 0.9, *, scale: str = "sum", heads: str = "unit"):
        super().__init__(scale=scale, heads=heads)
        if rule not in RULES:
            raise MethodError(f"cr_mogm: {unknown_name('rule', rule, RULES)}")
        if not 0 <= alpha <= 1:
            raise MethodError(f"cr_mogm: alpha must be in [0, 1]. Found {alpha}. The default is 0.9.")
        self.rule, self.alpha = rule, alpha

    def configure(self, tasks: int) -> None:
        """Creates the wrapped rule and the smoothed weights (NaN until known)."""
        super().configure(tasks)
        self.wrapped = make_balancer(self.rule, scale=self.scale)
        self.wrapped.configure(tasks)
        self.register_buffer("smoothed", torch.full((tasks,), float("nan"), dtype=torch.float64))

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns the smoothed weights (A,)."""
        active, fresh = list(ctx.active), self.wrapped.gradient_weights(gramian, ctx).to(self.smoothed)
        before = torch.where(self.smoothed[active].isnan(), fresh, self.smoothed[active])
        self.smoothed[active] = self.alpha * before + (1 - self.alpha) * fresh
        return self.smoothed[active].double().cpu()
