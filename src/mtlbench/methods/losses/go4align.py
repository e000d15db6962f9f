"""GO4Align: groups tasks by their progress-scaled losses and gives the tasks of a group the same weight."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer, Context
from mtlbench.balancing.rules.scale import known_scale, sum_scaled
from mtlbench.balancing.rules.simplex import read_share, write_share
from mtlbench.errors import MethodError


class GO4Align(Balancer):
    """Group optimization for multi-task alignment (https://arxiv.org/abs/2404.06486, NeurIPS 2024).

    Rule: p_i ← p_i exp(-η L_i) / Σ_j p_j exp(-η L_j); r_i = p_i Σ_j L_j / L_i; K-means cuts the numbers r_i into K
    groups, and c_i is the mean of the group of i; L = Σ_i c_i L_i.

    Symbols: p (T,) on the simplex, initially 1 / T; c held fixed in the derivative.

    Args:
        groups: K, at least 1. With 1 all weights are equal, which on sum scale is `uniform`. The default is ours.
        lr: η, at least 0; the official code uses 1e-4.
        scale: ``"sum"``: with a factor, so that the weights sum to the number of active tasks. ``"raw"``: without it.

    Differences from the official code: K is 2 instead of 1. K-means is exact, by the best cuts of the sorted numbers,
    instead of a search from a random start. Absent tasks keep p_i; the others redistribute theirs. Losses must be above
    0. A task of large loss *loses* weight.

    Example:
        >>> import torch
        >>> rule = GO4Align(groups=1, lr=0.1, scale="raw")
        >>> rule.direction(torch.eye(3), losses=torch.tensor([1.0, 2.0, 4.0]))
        tensor([1.4443, 1.4443, 1.4443])
    """

    TAXONOMY = "optimisation/loss weighting/by learning speed"
    SEARCH = {"groups": [2, 3], "lr": [1e-5, 1e-4, 1e-3, 1e-2]}
    POSITIVE = True

    progress: Tensor

    def __init__(self, groups: int = 2, lr: float = 1e-4, scale: str = "sum"):
        super().__init__()
        if groups < 1:
            raise MethodError(f"go4align: groups must be at least 1. Found {groups}. The default is 2.")
        if not 0 <= lr < math.inf:
            raise MethodError(f"go4align: lr must be at least 0 and finite. Found {lr}. The default is 1e-4.")
        self.groups, self.lr, self.scale = groups, lr, known_scale("go4align", scale)

    def configure(self, tasks: int) -> None:
        """Creates p."""
        super().configure(tasks)
        self.register_buffer("progress", torch.full((tasks,), 1 / tasks, dtype=torch.float64))

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns the sum of (A,) losses with the weights of their groups."""
        values = losses.detach().double().cpu().numpy()
        ratios = self._moved(values, ctx) * values.sum() / values
        weights = torch.from_numpy(group_means(ratios, self.groups)).to(losses)
        value = (weights * losses).sum()
        return value if self.scale == "raw" else sum_scaled(value, weights)

    def after_step(self, ctx: Context) -> None:
        """Moves p."""
        write_share(self.progress, ctx.active, self._moved(ctx.losses.double().cpu().numpy(), ctx))

    def _moved(self, losses: np.ndarray, ctx: Context) -> np.ndarray:
        """Returns p (A,) of the active tasks after this step, of sum 1."""
        # A common factor cancels; without it, large losses would all vanish.
        share = read_share(self.progress, ctx.active) * np.exp(-self.lr * (losses - losses.min()))
        return share / share.sum()


def group_means(values: np.ndarray, groups: int) -> np.ndarray:
    """Returns for each value (A,) the mean of its group in the best division into at most ``groups`` groups.

    The best division has the least sum of squared distances from the means. Its groups are intervals of the sorted
    values, found by dynamic programming.

    Example:
        >>> group_means(np.array([2.0, 9.0, 1.0, 8.0]), 2).tolist()
        [1.5, 8.5, 1.5, 8.5]
    """
    order = np.argsort(values, kind="stable")
    ordered, count = values[order], len(values)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    squares = np.concatenate([[0.0], np.cumsum(ordered**2)])

    def spread(start: int, end: int) -> float:
        return squares[end] - squares[start] - (sums[end] - sums[start]) ** 2 / (end - start)

    # best[end] is the least spread of the first `end` values and the cuts that give it, for a growing number of groups.
    best = [(0.0, [0]) if end == 0 else (spread(0, end), [0, end]) for end in range(count + 1)]
    for _ in range(min(groups, count) - 1):
        best = [
            best[end]
            if end < 2
            else min((best[cut][0] + spread(cut, end), [*best[cut][1], end]) for cut in range(1, end))
            for end in range(count + 1)
        ]
    cuts = best[count][1]
    means = np.empty(count)
    for start, end in zip(cuts, cuts[1:], strict=False):
        means[order[start:end]] = ordered[start:end].mean()
    return means
