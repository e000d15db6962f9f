"""Dynamic weight averaging: tasks whose loss falls slowly get more weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer, Context
from mtlbench.errors import MethodError


class DWA(Balancer):
    """Dynamic weight average (https://arxiv.org/abs/1803.10704, CVPR 2019).

    Rule: L = Σ_i w_i L_i, w = T · softmax(r / temperature), r_i = L_i(n-1) / L_i(n-2).

    Symbols: L_i(n) is the mean of L_i over epoch n and over all ranks; w = 1 in the first two epochs.

    Args:
        temperature: Softness of the weights, above 0; the paper uses 2.

    Differences from the official code: epoch means include every step in which the task had a label. A task without
    labels in one of the two epochs has r_i = 1.

    Example:
        >>> import torch
        >>> dwa = DWA()
        >>> dwa.configure(2)
        >>> dwa.history = torch.tensor([[2.0, 2.0], [2.0, 1.0]])
        >>> dwa.task_weights()
        tensor([1.1244, 0.8756])
    """

    TAXONOMY = "optimisation/loss weighting/by learning speed"
    SEARCH = {"temperature": [1.0, 2.0, 5.0]}

    history: Tensor
    sums: Tensor
    steps: Tensor

    def __init__(self, temperature: float = 2.0):
        super().__init__()
        if not 0 < temperature < math.inf:
            raise MethodError(f"dwa: temperature must be above 0 and finite. Found {temperature}. The default is 2.")
        self.temperature = temperature

    def configure(self, tasks: int) -> None:
        """Creates the means of the last two epochs, older first (NaN until known), and the running sums."""
        super().configure(tasks)
        self.register_buffer("history", torch.full((2, tasks), float("nan")))
        self.register_buffer("sums", torch.zeros(tasks))
        self.register_buffer("steps", torch.zeros(tasks))

    def task_weights(self) -> Tensor:
        """Returns the weights (T,) of the current epoch, which sum to T."""
        ratio = torch.nan_to_num(self.history[1] / self.history[0], nan=1.0)
        return self.tasks * torch.softmax(ratio / self.temperature, 0)

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns the weighted sum of (A,) losses."""
        weights = self.task_weights()
        return (weights[ctx.index(weights)].to(losses) * losses).sum()

    def after_step(self, ctx: Context) -> None:
        """Adds the step's losses to the epoch's sums."""
        active = ctx.index(self.sums)
        self.sums[active] += ctx.losses.to(self.sums)
        self.steps[active] += 1

    def epoch_end(self) -> None:
        """Moves the epoch's means into the history."""
        self.history.copy_(torch.stack([self.history[1], self.sums / self.steps]))
        self.sums.zero_()
        self.steps.zero_()
