"""IMTL-G: the update has the same projection on every task's unit gradient."""

from __future__ import annotations

from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules.imtl import equal_projections


class IMTLG(GradientRule):
    """Towards impartial multi-task learning (https://openreview.net/forum?id=IMPnRXEWpvr, ICLR 2021), gradients only.

    Rule: d = Σ_i w_i g_i with Σ_i w_i = 1 and ⟨d, g_i⟩ / ‖g_i‖ equal for all i.

    Symbols: g_i gradient of task i with respect to the shared parameters, averaged over all ranks.

    Args:
        **conventions: ``scale`` (the rule's own is ``"mean"``) and ``heads``; see `GradientRule`. The paper has no
            hyper-parameters.

    Differences from the paper: its closed form divides by zero if gradients are linearly dependent. Here a
    pseudo-inverse of the cosines gives the least-squares direction, or zero if gradients cancel. (TorchJD uses the
    pseudo-inverse of the Gramian, which loses tasks with small gradients.) As in the paper, weights may be negative. If
    a task with a small gradient has a negative weight, Σ w = 1 can turn the direction against every task.

    Example:
        >>> import torch
        >>> IMTLG(scale="mean").direction(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([0.6667, 0.6667])
    """

    TAXONOMY = "optimisation/gradient modulation"

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns weights (A,) that make all projections equal."""
        weights = equal_projections(gramian, ctx.losses.dtype)
        return self.scaled(weights, len(gramian), natural="mean")
