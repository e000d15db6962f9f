"""GradDrop: each coordinate of the update keeps gradients of one sign only, drawn by their purity."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer, Context
from mtlbench.balancing.torchjd import aggregate
from mtlbench.errors import MethodError


class GradDrop(Balancer):
    """Just pick a sign (https://arxiv.org/abs/2010.06808, NeurIPS 2020).

    Rule: p = ½ (1 + Σ_i g_i / Σ_i |g_i|) per coordinate; with U ~ U(0, 1), keep g_i > 0 where p > U and g_i < 0 where
    p < U; d = Σ_i (leak + (1 - leak) · mask_i) · g_i.

    Symbols: g_i gradient of task i with respect to the shared parameters, p positive sign purity.

    Args:
        leak: Share of a dropped coordinate that passes all the same, in [0, 1]; the paper uses 0.

    Differences from the paper: it works on the gradients of the shared parameters, not of a representation, so that
    it holds under accumulation and for every network. The rule is TorchJD's, draw for draw, without its pass over the
    Jacobian for every task.

    Example:
        >>> import torch
        >>> GradDrop(leak=1.0).direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0., 1.])
    """

    SEARCH = {"leak": [0.0, 0.25, 0.5]}

    def __init__(self, leak: float = 0.0):
        super().__init__()
        if not 0 <= leak <= 1:
            raise MethodError(f"graddrop: leak must lie in [0, 1]. Found {leak}.")
        self.leak = leak

    def combine_gradients(self, jacobian: Tensor, ctx: Context) -> Tensor:
        """Returns the direction (P,) from the (A, P) Jacobian; the draw is the same on every rank."""
        return aggregate(self._drop, jacobian, ctx.generator, columns=1 << 15)

    def _drop(self, rows: Tensor) -> Tensor:
        positive, negative = rows.clamp(min=0).sum(0), rows.clamp(max=0).sum(0)
        total = positive + negative
        purity = 0.5 * (1 + total / (positive - negative))
        drawn = torch.rand(purity.shape, dtype=rows.dtype, device=rows.device)
        kept = torch.where(purity > drawn, positive, 0.0) + torch.where(purity < drawn, negative, 0.0)
        return self.leak * total + (1 - self.leak) * kept
