"""Uncertainty weighting: a learned log-variance per task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Balancer, Context


class Uncertainty(Balancer):
    """Multi-task learning using uncertainty to weigh losses (https://arxiv.org/abs/1705.07115, CVPR 2018).

    Rule: L = 2 · Σ_i (½ e^{-s_i} L_i + ½ s_i).

    Symbols: s_i = log σ_i², trained by the run's optimiser without weight decay.

    Args:
        initial: s_i at the start. The paper does not state it; official-looking codes use -0.5 or 0. With 0
            every task starts with weight 1.

    Differences: the factor 2 puts the rule on sum scale (weights 1 at the start), so that one learning rate is fair
    to every method. It leaves the minimum s_i = ln L_i where it is. The regression form is used for every kind.

    Example:
        >>> import torch
        >>> Uncertainty().direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0., 1.])
    """

    SEARCH = {"initial": [-0.5, 0.0, 0.5]}

    def __init__(self, initial: float = 0.0):
        super().__init__()
        self.initial = initial

    def configure(self, tasks: int) -> None:
        """Creates one log-variance per task."""
        super().configure(tasks)
        self.log_variance = nn.Parameter(torch.full((tasks,), float(self.initial)))

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Weighs (A,) losses by their learned precision; the log-variances see the same gradient on all ranks."""
        s = self.log_variance[list(ctx.active)]
        return (torch.exp(-s) * losses + s).sum()
