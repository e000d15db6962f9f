"""IGB: weights tasks by the gap that is left of their loss, relative to that of an early epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer, Context
from mtlbench.balancing.rules.scale import known_scale, sum_scaled
from mtlbench.errors import MethodError


class IGB(Balancer):
    """Improvable gap balancing, version 1 (https://arxiv.org/abs/2307.15429, UAI 2023).

    Rule: L = κ Σ_i c_i ln L_i, c = A softmax(L_i / z_i) held fixed in the derivative; c = 1 until z is known.

    Symbols: z_i mean of L_i over epoch ``base_epoch``; A tasks with a label in the step; κ = A / Σ_i (c_i / L_i), held
    fixed in the derivative, and 1 on raw scale.

    Args:
        base_epoch: Index of the epoch that gives z, from 0; 1 in the official code.
        scale: ``"sum"``: the weights sum to A. ``"raw"``: as in the paper, where those of the ln L_i do.

    Differences from the official code: κ; losses must be above 0. z weighs every step in which the task had a label; a
    task without any in that epoch counts as having the mean ratio of the others. A run of at most ``base_epoch`` + 1
    epochs is `scale_invariant`. Version 2, which learns c by reinforcement learning, is not available.

    Example:
        >>> import torch
        >>> IGB().direction(torch.eye(2), losses=torch.tensor([1.0, 3.0]))  # in the first epoch c = 1
        tensor([1.5000, 0.5000])
    """

    TAXONOMY = "optimisation/loss weighting/by learning speed"
    POSITIVE = True

    sums: Tensor
    steps: Tensor

    def __init__(self, base_epoch: int = 1, scale: str = "sum"):
        super().__init__()
        if base_epoch < 0:
            raise MethodError(f"igb: base_epoch must be at least 0. Found {base_epoch}. The default is 1.")
        self.base_epoch, self.scale = base_epoch, known_scale("igb", scale)

    def configure(self, tasks: int) -> None:
        """Creates the sums of losses over the epoch that gives z, and their number."""
        super().configure(tasks)
        self.register_buffer("sums", torch.zeros(tasks))
        self.register_buffer("steps", torch.zeros(tasks))

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns the weighted sum of the logarithms of (A,) losses, scaled."""
        weights = torch.ones_like(losses)
        if ctx.epoch > self.base_epoch:
            ratios = losses.detach() / (self.sums / self.steps)[ctx.index(self.sums)].to(losses)
            ratios = torch.where(ratios.isnan(), ratios.nanmean().nan_to_num(), ratios)
            weights = len(losses) * torch.softmax(ratios, 0)
        value = (weights * losses.log()).sum()
        return value if self.scale == "raw" else sum_scaled(value, weights / losses)

    def after_step(self, ctx: Context) -> None:
        """Adds the losses of a step of epoch ``base_epoch`` to the sums from which z is computed."""
        if ctx.epoch == self.base_epoch:
            active = ctx.index(self.sums)
            self.sums[active] += ctx.losses.to(self.sums)
            self.steps[active] += 1
