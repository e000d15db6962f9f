"""Trimmed mean: averages the gradients of the tasks, in every parameter without the largest and smallest values."""

from __future__ import annotations

from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules.torchjd import TrimmedMean as Trimmed
from mtlbench.errors import MethodError


class TrimmedMean(GradientRule):
    """Byzantine-robust distributed learning (https://arxiv.org/abs/1803.01498, ICML 2018).

    Rule: for every parameter, sort the derivatives of the tasks, drop the b largest and the b smallest, and take the
    mean of the rest.

    Symbols: derivatives are those of the task losses, averaged over all ranks; A number of tasks with a label in the
    step.

    Args:
        trim: b, at least 0; 0 is the mean. The rule needs A ≥ 2b + 1; in a step with fewer tasks b is smaller.
        scale: See `GradientRule`; the rule's own is ``"mean"``. Heads get their own gradients.

    Differences from the paper: b is a number instead of a share. The rule is TorchJD's, which is made for many workers
    with one loss, not for a few tasks.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1.0, 0.0], [1.1, 0.0], [0.9, 0.1], [-5.0, 5.0]])
        >>> TrimmedMean(scale="mean").direction(rows)
        tensor([0.9500, 0.0500])
    """

    TAXONOMY = "optimisation/gradient modulation"
    COLUMNWISE = True

    def __init__(self, trim: int = 1, *, scale: str = "sum"):
        super().__init__(scale=scale)
        if trim < 0:
            raise MethodError(f"trimmed_mean: trim must be at least 0. Found {trim}. The default is 1.")
        self.trim = trim

    def combine_gradients(self, jacobian: Tensor, ctx: Context) -> Tensor:
        """Returns the direction (P,) from the (A, P) Jacobian, or from a block of its columns."""
        count = len(jacobian)
        found = Trimmed(min(self.trim, (count - 1) // 2))(jacobian)
        return self.scaled(found, count, natural="mean")
