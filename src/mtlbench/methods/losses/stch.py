"""STCH: a smooth maximum of the losses, each relative to its mean at the end of the warm-up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer, Context
from mtlbench.balancing.rules.scale import known_scale, sum_scaled
from mtlbench.errors import MethodError


class STCH(Balancer):
    """Smooth Tchebycheff scalarisation (https://arxiv.org/abs/2402.19078, ICML 2024), as its multi-task code has it.

    Rule: up to and including epoch ``warmup_epochs``, counted from 0: L = κ Σ_i ln L_i. From then on
    L = κ A μ ln Σ_i exp(r_i / μ), r_i = ln(L_i / z_i). The weights are w_i = κ p_i / L_i, with p_i = 1 in the warm-up
    and p = A softmax(r / μ) afterwards.

    Symbols: z_i mean of L_i over epoch ``warmup_epochs``; A tasks with a label in the step; κ = A / Σ_i (p_i / L_i),
    held fixed in the derivative, and 1 on raw scale.

    Args:
        mu: Smoothness μ, above 0; the multi-task runs use 1. Near 0 only the task that decreased least counts.
        warmup_epochs: Index of the epoch that gives z; 4 in the official code, so that five epochs are warm-up.
        scale: ``"sum"``: the weights sum to A in every step of both phases. ``"raw"``: as in the paper, where the
            weights of the ln L_i sum to A instead.

    Differences from the official code: κ; nothing is added inside the logarithms, so that losses must be above 0; z
    weighs every step in which the task had a label. A task without any label in that epoch has no z: its r_i counts
    as the mean of the others. On sum scale with μ = 1 the weights after the warm-up are constant, in proportion to
    1 / z_i. A run of at most ``warmup_epochs`` + 1 epochs is all warm-up, which is `scale_invariant`.

    Example:
        >>> import torch
        >>> STCH().direction(torch.eye(2), losses=torch.tensor([1.0, 3.0]))
        tensor([1.5000, 0.5000])
    """

    TAXONOMY = "optimisation/multi-objective"
    SEARCH = {"mu": [0.1, 1.0, 10.0]}
    POSITIVE = True

    sums: Tensor
    steps: Tensor

    def __init__(self, mu: float = 1.0, warmup_epochs: int = 4, scale: str = "sum"):
        super().__init__()
        if not 0 < mu < math.inf:
            raise MethodError(f"stch: mu must be above 0 and finite. Found {mu}. The default is 1.")
        if not warmup_epochs >= 0:
            raise MethodError(f"stch: warmup_epochs must be at least 0. Found {warmup_epochs}.")
        self.mu, self.warmup_epochs, self.scale = mu, warmup_epochs, known_scale("stch", scale)

    def configure(self, tasks: int) -> None:
        """Creates the sums of losses over the epoch that gives z, and their number."""
        super().configure(tasks)
        self.register_buffer("sums", torch.zeros(tasks))
        self.register_buffer("steps", torch.zeros(tasks))

    def nadir(self) -> Tensor:
        """Returns z (T,), complete when the epoch is; NaN for a task without a label in it."""
        return self.sums / self.steps

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns the sum of logarithms or the smooth maximum of (A,) losses, scaled."""
        logs, tasks = losses.log(), len(losses)
        if ctx.epoch <= self.warmup_epochs:
            value, shares = logs.sum(), torch.ones_like(losses)
        else:
            ratios = (logs - self._log_nadir(logs.detach(), ctx)) / self.mu
            value, shares = tasks * self.mu * torch.logsumexp(ratios, 0), tasks * torch.softmax(ratios, 0)
        return value if self.scale == "raw" else sum_scaled(value, shares / losses)

    def after_step(self, ctx: Context) -> None:
        """Adds the losses of a step of epoch ``warmup_epochs`` to the sums from which z is computed."""
        if ctx.epoch == self.warmup_epochs:
            active = ctx.index(self.sums)
            self.sums[active] += ctx.losses.to(self.sums)
            self.steps[active] += 1

    def _log_nadir(self, logs: Tensor, ctx: Context) -> Tensor:
        known = self.nadir()[ctx.index(self.sums)].to(logs).log()
        mean = (logs - known).nanmean().nan_to_num()  # 0 if no task has a nadir.
        return torch.where(known.isnan(), logs - mean, known)
