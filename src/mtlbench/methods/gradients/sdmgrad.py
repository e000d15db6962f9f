"""SDMGrad: min-norm weights with a pull towards the mean gradient, solved on independent batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlbench.balancing.base import Context, GradientRule
from mtlbench.balancing.rules import simplex
from mtlbench.errors import MethodError


class SDMGrad(GradientRule):
    """Direction-oriented multi-objective learning (https://arxiv.org/abs/2305.18409, NeurIPS 2023).

    Rule: a few steps w ← Π(w - lr · v), v ← momentum · v + M (w + λ/T), then d = Σ_i (w_i + λ/T) / (1 + λ) · g_i.

    Symbols: M = G₁ G₂ᵀ divided by the square of the mean of its √max(diagonal, 0); G_b gradients (T, P) of mini-batch
    b with respect to the shared parameters, averaged over all ranks; g_i rows of G₃; Π projection on the simplex
    {w ≥ 0, Σ w = 1}. w starts at 1/T and is kept from step to step, v starts at 0 in each.

    Args:
        lambda_: λ, pull towards the mean gradient; the paper's experiments use 0.3. Large values give the mean.
        lr: Step size of w; the official code uses 10, LibMTL 5. Both overshoot, so that w jumps on the simplex.
        momentum: Momentum of the steps; the official code uses 0.5.
        steps: Number of the steps; the official code uses 20.
        **conventions: ``scale`` (the rule's own is ``"mean"``) and ``heads``; see `GradientRule`.

    Differences from the official code: negative numbers on the diagonal count as 0 and 1e-8 is added to the square
    (as in LibMTL), where it takes the root of the diagonal plus 1e-4. The batch is split in three instead of
    drawing three, so that data and epochs equal those of other methods. Absent tasks keep their w_i, and the others
    redistribute their total. The weights of a step still sum to 1. TorchJD has the same rule; it is implemented here
    because w must be a buffer of T tasks, which checkpoints contain and which keeps the values of absent tasks.

    Example:
        >>> import torch
        >>> SDMGrad(lambda_=0.0, lr=0.1, steps=1, scale="mean").weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]))
        tensor([0.5172, 0.4828])
    """

    TAXONOMY = "optimisation/multi-objective"
    SEARCH = {"lambda_": [0.1, 0.3, 1.0], "lr": [1.0, 10.0]}
    batches = 3

    task_weights: Tensor

    def __init__(
        self, lambda_: float = 0.3, lr: float = 10.0, momentum: float = 0.5, steps: int = 20, **conventions: Any
    ):
        super().__init__(**conventions)
        if not 0 <= lambda_ < float("inf"):
            raise MethodError(f"sdmgrad: lambda_ must be at least 0 and finite. Found {lambda_}. The default is 0.3.")
        if not 0 < lr < float("inf"):
            raise MethodError(f"sdmgrad: lr must be above 0 and finite. Found {lr}. The default is 10.")
        if not 0 <= momentum < 1:
            raise MethodError(f"sdmgrad: momentum must be in [0, 1). Found {momentum}. The default is 0.5.")
        if not steps >= 1:
            raise MethodError(f"sdmgrad: steps must be at least 1. Found {steps}. The default is 20.")
        self.lambda_, self.lr, self.momentum, self.steps = lambda_, lr, momentum, steps

    def configure(self, tasks: int) -> None:
        """Creates equal weights w."""
        super().configure(tasks)
        self.register_buffer("task_weights", torch.full((tasks,), 1 / tasks))

    def gradient_weights(self, gramian: Tensor, ctx: Context) -> Tensor:
        """Moves w by the cross-Gramian G₁ G₂ᵀ (A, A); returns the weights (A,) of the third batch."""
        w = self._solved(gramian.numpy(), simplex.read_share(self.task_weights, ctx.active))
        simplex.write_share(self.task_weights, ctx.active, w)
        weights = (w + self.lambda_ / len(w)) / (1 + self.lambda_)
        return self.scaled(torch.from_numpy(weights), len(w), natural="mean")

    def _solved(self, cross: np.ndarray, w: np.ndarray) -> np.ndarray:
        scale = np.sqrt(cross.diagonal().clip(min=0)).mean()
        normalised, velocity = cross / (scale**2 + 1e-8), np.zeros_like(w)
        for _ in range(self.steps):
            velocity = self.momentum * velocity + normalised @ (w + self.lambda_ / len(w))
            w = simplex.project(w - self.lr * velocity)
        return w
