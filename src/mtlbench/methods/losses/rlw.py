"""RLW: random task weights, drawn anew in every step; a baseline that every other rule should beat."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer, Context
from mtlbench.balancing.rules.scale import known_scale


class RLW(Balancer):
    """Reasonable effectiveness of random weighting (https://arxiv.org/abs/2111.10603, TMLR 2022).

    Rule: L = A Σ_i w_i L_i, w = softmax(z), z ~ N(0, I), drawn in every optimiser step.

    Symbols: A tasks with a label in the step. On average over draws every A w_i is 1.

    Args:
        scale: ``"sum"``: the weights sum to A. ``"mean"``: to 1, as in the paper.

    Differences from the paper: the factor A. Of the paper's distributions, only the standard one is available. One
    number is drawn per task of the run, and those of tasks without a label are ignored, so that ranks and micro-batches
    of a step agree. The weights apply to heads too.

    Example:
        >>> import torch
        >>> drawn = RLW().direction(torch.eye(3), seed=1)
        >>> round(drawn.sum().item(), 4), drawn.tolist() == RLW().direction(torch.eye(3), seed=2).tolist()
        (3.0, False)
    """

    TAXONOMY = "optimisation/loss weighting/other"

    def __init__(self, scale: str = "sum"):
        super().__init__()
        self.scale = known_scale("rlw", scale, ("sum", "mean"))

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns the sum of (A,) losses under this step's weights."""
        # Always in float64, so that the draw does not depend on the precision of training.
        z = torch.randn(self.tasks, generator=ctx.generator, dtype=torch.float64)
        weights = torch.softmax(z[list(ctx.active)], 0)
        if self.scale == "sum":
            weights = len(losses) * weights
        return (weights.to(losses) * losses).sum()
