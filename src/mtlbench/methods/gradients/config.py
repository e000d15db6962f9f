"""ConFIG: the direction with equal cosines to all tasks' gradients, as long as the sum of their projections."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules.equal_projection import unit_projections


class ConFIG(GradientRule):
    """Towards conflict-free training of physics informed neural networks (https://arxiv.org/abs/2408.11104, ICLR 2025).

    Rule: x = U⁺ 1, d = Σ_i ⟨g_i, x⟩ · x / ‖x‖².

    Symbols: g_i gradient of task i with respect to the shared parameters, averaged over all ranks; U the matrix of
    the rows g_i / ‖g_i‖.

    Args:
        **conventions: ``scale`` (the rule's own is ``"sum"``) and ``heads``; see `GradientRule`. As in the paper, all
            tasks have equal weight.

    Differences from the paper: the rule is computed from the Gramian, because x is in the span of the gradients. Rows
    count as dependent if an eigenvalue of their cosines is below 1e-10 of the largest (in float32 about 1e-5). They
    count as cancelling, with d = 0, if their mean cosine with x is below that bound. This is the basic form without the
    momentum of M-ConFIG. The direction of d is that of `imtl_g`, but never opposed to the tasks.

    Example:
        >>> import torch
        >>> ConFIG().direction(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([1.5000, 1.5000])
    """

    TAXONOMY = "optimisation/gradient modulation"

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns the coefficient (A,) of every gradient in the common direction."""
        x = unit_projections(gramian, ctx.losses.dtype)
        projections, square = gramian @ x, x @ gramian @ x
        weights = torch.where(square > 0, x * projections.sum() / square, 0.0)
        return self.scaled(weights, len(gramian), natural="sum")
