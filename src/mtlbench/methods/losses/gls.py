"""GLS: the geometric mean of the losses."""

from __future__ import annotations

from torch import Tensor

from mtlbench.balancing.base import Balancer, Context
from mtlbench.balancing.rules.scale import known_scale


class GLS(Balancer):
    """Geometric loss strategy of MultiNet++ (https://arxiv.org/abs/1904.08492, CVPR Workshops 2019).

    Rule: L = A (Π_i L_i)^{1/A}; the weights are w_i = M / L_i with M the geometric mean.

    Symbols: A tasks with a label in the step.

    Args:
        scale: ``"sum"``: with the factor A, so that equal losses have weight 1. ``"raw"``: without it, as in the paper;
            equal losses have weight 1 / A.

    Differences from the paper: the factor A, and the product is taken as a sum of logarithms, which neither overflows
    nor vanishes. On either scale only weights of equal losses sum to A or 1; of unequal ones the sum is larger.
    Multiplying one loss by a constant changes the length of the gradient and not its direction. Losses must be
    above 0.

    Relatives: `scale_invariant` has the same direction, and weights that always sum to A.

    Example:
        >>> import torch
        >>> GLS().direction(torch.eye(2), losses=torch.tensor([1.0, 4.0]))
        tensor([2.0000, 0.5000])
    """

    TAXONOMY = "optimisation/loss weighting/geometric mean"
    POSITIVE = True

    def __init__(self, scale: str = "sum"):
        super().__init__()
        self.scale = known_scale("gls", scale)

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns the geometric mean of (A,) losses, scaled."""
        mean = losses.log().mean().exp()
        return len(losses) * mean if self.scale == "sum" else mean
