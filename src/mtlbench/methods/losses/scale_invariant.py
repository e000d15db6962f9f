"""Scale-invariant: the sum of the logarithms of the losses, so that their units do not matter."""

from __future__ import annotations

from torch import Tensor

from mtlbench.balancing.base import Balancer, Context
from mtlbench.balancing.rules.scale import known_scale, sum_scaled


class ScaleInvariant(Balancer):
    """Scale-invariant baseline of "Multi-task learning as a bargaining game" (https://arxiv.org/abs/2202.01017, 2022).

    Rule: L = κ Σ_i ln L_i; the weights are w_i = κ / L_i.

    Symbols: κ = A / Σ_i (1 / L_i), held fixed in the derivative, for A tasks with a label; κ = 1 on raw scale.

    Args:
        scale: ``"sum"``: the weights sum to A in every step. ``"raw"``: as in the paper, where they grow without
            bound as the losses fall.

    Differences from the paper: κ. The direction is the paper's; its length is not. On raw scale the gradient does not
    change when a loss is multiplied by a constant. On sum scale its direction does not. Losses must be above 0.

    Relatives: `gls` has the same direction and another length; `famo` starts here.

    Example:
        >>> import torch
        >>> ScaleInvariant().direction(torch.eye(2), losses=torch.tensor([1.0, 3.0]))
        tensor([1.5000, 0.5000])
    """

    TAXONOMY = "optimisation/loss weighting/other"
    POSITIVE = True

    def __init__(self, scale: str = "sum"):
        super().__init__()
        self.scale = known_scale("scale_invariant", scale)

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns the sum of the logarithms of (A,) losses, scaled."""
        value = losses.log().sum()
        return value if self.scale == "raw" else sum_scaled(value, 1 / losses)
