"""GradVac per parameter tensor: each tensor has its own running similarities and its own correction."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.balancing.base import Context
from mtlbench.balancing.rules.gradvac import checked_beta, vaccinate
from mtlbench.balancing.rules.stateful import MemoryRule


class GradVacLayer(MemoryRule):
    """Gradient Vaccine (https://arxiv.org/abs/2010.05874, ICLR 2021), in groups of parameters: one per tensor.

    Rule: that of `gradvac`, on the part of the gradients that belongs to a tensor, separately for every shared tensor.

    Symbols: ρ̂ (tensors, T, T) running similarities, at first 0.

    Args:
        beta: β, in [0, 1]. LibMTL uses 0.5. The paper reportedly uses 0.01.
        scale: See `GradientRule`; the rule's own is ``"sum"``. Heads get their own gradients: a task has as many
            weights as there are tensors.

    Differences from the paper: those of `gradvac`. All tensors take the other tasks in the same random order, as in
    LibMTL's group type 2. By hand, without a network, there is one group: `gradvac`.

    Example:
        >>> import torch
        >>> GradVacLayer().direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.5000, 1.5000])
    """

    TAXONOMY = "optimisation/gradient modulation"
    SEARCH = {"beta": [0.01, 0.1, 0.5]}

    def __init__(self, beta: float = 0.5, *, scale: str = "sum"):
        super().__init__(scale=scale)
        self.beta = checked_beta("gradvac_layer", beta)

    def combine_gradients(self, jacobian: Tensor, ctx: Context) -> Tensor:
        """Returns the direction (P,) from the (A, P) Jacobian; updates ρ̂."""
        parts = jacobian.split(ctx.sizes or jacobian.shape[1], dim=1)
        targets = self.recall(jacobian, len(parts), self.tasks, self.tasks)
        gramians = torch.stack([part @ part.T for part in parts]).cpu()
        weights = self.scaled(vaccinate(gramians, targets, self.beta, ctx), len(jacobian), natural="sum")
        return torch.cat([own @ part for own, part in zip(weights.to(jacobian), parts, strict=True)])
