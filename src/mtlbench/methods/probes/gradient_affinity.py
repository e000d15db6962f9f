"""Gradient affinity: measures the cosine between the gradients of two tasks."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.balancing.base import Context
from mtlbench.balancing.gradients.diagnostics import cosines
from mtlbench.balancing.rules.probe import Probe


class GradientAffinity(Probe):
    """The cosine baseline of task affinity groupings (https://arxiv.org/abs/2109.04617, NeurIPS 2021).

    Rule: training is that of `uniform`. Every few steps cos(g_i, g_j) is found for all pairs; the affinity is the mean
    over these steps. The summary holds it as ``affinity[j][i]``, which is symmetric.

    Symbols: g_i gradient of task i with respect to the shared parameters, averaged over all ranks.

    Args:
        every: Steps from one measurement to the next; 10, as for `inter_task_affinity`.

    Differences from the literature: a gradient of zero has no cosine and is not counted. It costs T backward passes
    where `inter_task_affinity` needs T forward passes more, and knows nothing of the optimiser.

    Example:
        >>> import torch
        >>> rule = GradientAffinity()
        >>> rule.direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0., 1.])
        >>> [[round(value, 4) for value in row] for row in rule.summary()["affinity"]]
        [[1.0, -0.7071], [-0.7071, 1.0]]
    """

    TAXONOMY = "relationships/grouping"

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Records the cosines of the (A, A) Gramian and returns ones (A,)."""
        lengths = gramian.diagonal()
        self.note(cosines(gramian).where(lengths[:, None] * lengths > 0, torch.nan), ctx.active)
        return torch.ones(len(gramian), dtype=gramian.dtype)
