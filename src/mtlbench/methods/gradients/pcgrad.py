"""PCGrad: projects conflicting gradients onto each other's normal planes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules.torchjd import PCGradWeighting, gramian_weights


class PCGrad(GradientRule):
    """Gradient surgery for multi-task learning (https://arxiv.org/abs/2001.06782, NeurIPS 2020).

    Rule: for each i start with g_i; for j ≠ i in random order, if ⟨g_i, g_j⟩ < 0 subtract
    ⟨g_i, g_j⟩ / ‖g_j‖² · g_j with the original g_j. The direction is the sum of the results.

    Symbols: g_i gradient of task i's loss with respect to the shared parameters, averaged over all ranks.

    Args:
        **conventions: ``scale`` (the rule's own is ``"sum"``) and ``heads``; see `GradientRule`. The paper has no
            hyper-parameters.

    Differences from the official code: none in the rule (sum, j ≠ i). It is computed from the Gramian, which is
    equivalent because every projected gradient stays in the span. Heads get their own gradients.

    Example:
        >>> import torch
        >>> PCGrad().direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.5000, 1.5000])
    """

    TAXONOMY = "optimisation/gradient modulation"

    def __init__(self, **conventions: Any):
        super().__init__(**conventions)
        self._rule = PCGradWeighting()

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns the coefficient (A,) of every original gradient in the projected sum."""
        weights = gramian_weights(self._rule, gramian, ctx.generator)
        return self.scaled(weights, len(gramian), natural="sum")
