"""IMTL-L: learned loss weights that bring all losses to one scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtlbench.balancing.base import Balancer, Context
from mtlbench.balancing.rules.imtl import log_scaled


class IMTLL(Balancer):
    """Towards impartial multi-task learning (https://openreview.net/forum?id=IMPnRXEWpvr, ICLR 2021), losses only.

    Rule: L = Σ_i (e^{s_i} L_i - s_i).

    Symbols: s_i logarithm of the weight of task i, 0 at the start, trained by the run's optimiser without weight decay.
    At fixed losses the minimum lies at e^{s_i} = 1 / L_i, where every scaled loss is 1.

    Args: none, as in the paper.

    Scale: sum scale at the start, where every weight is 1; later the weights are learned and their sum is free.

    Differences from the paper: none in the rule. It is the regression form of `uncertainty` on sum scale with s_i for
    -s_i, so that the two train alike; both are here because both are reported. The paper's full method adds a
    balance of gradients (`imtl`).

    Example:
        >>> import torch
        >>> IMTLL().direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0., 1.])
    """

    TAXONOMY = "optimisation/loss weighting/by uncertainty"

    def configure(self, tasks: int) -> None:
        """Creates one logarithm of a weight per task."""
        super().configure(tasks)
        self.log_weight = nn.Parameter(torch.zeros(tasks))

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Weighs (A,) losses; the logarithms see the same gradient on all ranks."""
        return log_scaled(losses, self.log_weight[ctx.index(self.log_weight)])
