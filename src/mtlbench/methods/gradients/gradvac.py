"""GradVac: rotates gradients towards each other if they are less similar than usual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules.gradvac import checked_beta, vaccinate


class GradVac(GradientRule):
    """Gradient Vaccine (https://arxiv.org/abs/2010.05874, ICLR 2021), on all shared parameters together.

    Rule: for each i start with g'_i = g_i; for j ≠ i in random order take ρ = cos(g'_i, g_j). If ρ < ρ̂_ij, add
    ‖g'_i‖ (ρ̂ √(1-ρ²) - ρ √(1-ρ̂²)) / (‖g_j‖ √(1-ρ̂²)) · g_j, after which the cosine is ρ̂. Then
    ρ̂_ij ← (1-β) ρ̂_ij + β ρ. The direction is Σ_i g'_i.

    Symbols: g_i gradient of task i with respect to the shared parameters; ρ̂ (T, T) running similarity, at first 0,
    where the rule is PCGrad's.

    Args:
        beta: β, in [0, 1]. LibMTL and TorchJD use 0.5. The paper reportedly uses 0.01.
        **conventions: ``scale`` (the rule's own is ``"sum"``) and ``heads``; see `GradientRule`.

    Differences from the paper: the rule is computed from the Gramian, which is equivalent because every g'_i stays in
    the span of the gradients. A zero gradient, or one that cancels completely, has no cosine, so nothing is added and
    ρ̂ does not change. ρ̂ is limited to 1 - 10⁻⁶. ρ̂ is updated for every pair, as in the paper and in LibMTL since 2024;
    before, LibMTL updated it only if ρ < ρ̂. See `gradvac_layer` for one ρ̂ per tensor.

    Example:
        >>> import torch
        >>> rule = GradVac()
        >>> gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
        >>> rule.direction(gradients)
        tensor([0.5000, 1.5000])
        >>> rule.targets
        tensor([[ 0.0000, -0.3536],
                [-0.3536,  0.0000]])
    """

    TAXONOMY = "optimisation/gradient modulation"
    SEARCH = {"beta": [0.01, 0.1, 0.5]}

    targets: Tensor

    def __init__(self, beta: float = 0.5, **conventions: Any):
        super().__init__(**conventions)
        self.beta = checked_beta("gradvac", beta)

    def configure(self, tasks: int) -> None:
        """Creates the running similarities ρ̂."""
        super().configure(tasks)
        self.register_buffer("targets", torch.zeros(tasks, tasks))

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns the coefficient (A,) of every original gradient in the corrected sum; updates ρ̂."""
        weights = vaccinate(gramian[None], self.targets[None], self.beta, ctx)[0]
        return self.scaled(weights, len(gramian), natural="sum")
