"""Krum: follows the gradients that lie closest to the others, made against faulty workers in distributed training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.errors import MethodError


class Krum(GradientRule):
    """Byzantine tolerant gradient descent (https://arxiv.org/abs/1703.02757, NeurIPS 2017).

    Rule: the score of task i is the sum of ‖g_i - g_j‖ over its A - b - 2 nearest tasks j; the direction is the mean of
    the m gradients of lowest score.

    Symbols: g_i gradient of task i with respect to the shared parameters, averaged over all ranks; A number of tasks
    with a label in the step.

    Args:
        n_byzantine: b, at least 0: gradients that may be outliers. The rule needs A ≥ b + 3; in a step with fewer
            tasks b is smaller, and fewer than three tasks are averaged.
        n_selected: m, at least 1; at most all tasks are selected. 1 is Krum, more are Multi-Krum.
        **conventions: ``scale`` (the rule's own is ``"mean"``) and ``heads``; see `GradientRule`.

    Differences from the paper: distances are not squared, as in TorchJD. Tasks whose scores are equal up to rounding
    share their place, so that the direction does not depend on the order of the tasks. With A = b + 3, the nearest two
    always have equal scores. The rule is made for many workers with one loss, not for a few tasks.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1.0, 0.0], [1.1, 0.0], [0.9, 0.1], [-5.0, 5.0], [1.0, 0.05]])
        >>> Krum(n_byzantine=1, scale="mean").direction(rows)
        tensor([1.0000, 0.0500])
    """

    TAXONOMY = "optimisation/gradient modulation"

    def __init__(self, n_byzantine: int = 0, n_selected: int = 1, **conventions: Any):
        super().__init__(**conventions)
        if n_byzantine < 0:
            raise MethodError(f"krum: n_byzantine must be at least 0. Found {n_byzantine}.")
        if n_selected < 1:
            raise MethodError(f"krum: n_selected must be at least 1. Found {n_selected}.")
        self.n_byzantine, self.n_selected = n_byzantine, n_selected

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Returns weights (A,): 1 / m for the selected tasks."""
        count = len(gramian)
        if count < 3:
            return self.scaled(torch.full((count,), 1 / count, dtype=torch.float64), count, natural="mean")
        scores, slack = self._scores(gramian, ctx.losses.dtype)
        wanted = min(self.n_selected, count)
        bound = scores.sort().values[wanted - 1]
        sure = (scores < bound - slack).double()
        tied = ((scores - bound).abs() <= slack).double()
        weights = (sure + tied * (wanted - sure.sum()) / tied.sum()) / wanted
        return self.scaled(weights, count, natural="mean")

    def _scores(self, gramian: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the scores (A,), and how far equal ones may lie apart by rounding."""
        squares = gramian.diagonal()
        # A product of matrices need not be symmetric to the last bit, but scores of two nearest tasks must be equal.
        distances = (squares[:, None] + squares - gramian - gramian.T).clamp(min=0).sqrt().fill_diagonal_(0)
        nearest = max(len(gramian) - self.n_byzantine - 2, 1)
        scores = distances.sort(1).values[:, 1 : 1 + nearest].sum(1)
        return scores, torch.finfo(precision).eps ** 0.5 * squares.amax().sqrt()
