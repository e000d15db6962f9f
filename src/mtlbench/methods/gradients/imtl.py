"""IMTL: learned loss weights, then an update with equal projections on all tasks' gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules.imtl import equal_projections, log_scaled


class IMTL(GradientRule):
    """Towards impartial multi-task learning (https://openreview.net/forum?id=IMPnRXEWpvr, ICLR 2021), both parts.

    Rule: losses e^{s_i} L_i - s_i; shared parameters follow d = Σ_i w_i g_i with Σ_i w_i = 1 and ⟨d, g_i⟩ / ‖g_i‖
    equal for all i.

    Symbols: s_i logarithm of the loss weight, 0 at the start, trained by the run's optimiser without weight decay; g_i
    gradient of e^{s_i} L_i with respect to the shared parameters, averaged over all ranks.

    Args:
        **conventions: ``scale`` (the gradient rule's own is ``"mean"``) and ``heads``; see `GradientRule`. The paper
            has no hyper-parameters.

    Scale: heads and s follow Σ_i (e^{s_i} L_i - s_i) itself. The length of d depends on s, its direction does not.

    Differences from the paper: those of `imtl_g`.

    Example:
        >>> import torch
        >>> IMTL(scale="mean").direction(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([0.6667, 0.6667])
    """

    TAXONOMY = "optimisation/gradient modulation"

    def configure(self, tasks: int) -> None:
        """Creates one logarithm of a weight per task."""
        super().configure(tasks)
        self.log_weight = nn.Parameter(torch.zeros(tasks))

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Weighs (A,) losses; the logarithms see the same gradient on all ranks."""
        return log_scaled(losses, self.log_weight[list(ctx.active)])

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns weights (A,) that make all projections equal, for gradients of the weighted losses."""
        weights = equal_projections(gramian, ctx.losses.dtype)
        return self.scaled(weights, len(gramian), natural="mean")
