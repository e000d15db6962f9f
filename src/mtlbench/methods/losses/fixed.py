"""Fixed weights: a weighted sum of the losses with user-defined weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlbench.balancing.base import Balancer, Context
from mtlbench.errors import MethodError
from mtlbench.registry import PerTask


class Fixed(Balancer):
    """Linear scalarisation (https://arxiv.org/abs/2209.11379, NeurIPS 2022).

    "Do current multi-task optimization methods in deep learning even help?": with tuned weights it is hard to beat.

    Rule: L = Σ_i w_i L_i.

    Symbols: L_i includes the task's static scale (``tasks.<name>.scale``), so the two factors multiply.

    Args:
        weights: One weight per task of the run, in the order of its tasks: at least 0, not all 0. None for ones, which
            is `uniform`.

    Scale: the weights are not rescaled. Only weights that sum to the number of tasks are on sum scale. Other weights
    change the length of the step as well as its direction.

    Differences from the literature: none. The static scales apply to every method of a suite, these weights only to
    this one.

    Example:
        >>> import torch
        >>> Fixed(weights=[0.5, 2.0]).direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([-1.5000,  2.0000])
    """

    TAXONOMY = "baseline"
    SEARCH = {"weights": PerTask(1 / 8, 8)}

    task_weights: Tensor

    def __init__(self, weights: list[float] | None = None):
        super().__init__()
        if weights is not None:
            _check(weights)
        self.given = None if weights is None else [float(weight) for weight in weights]

    def configure(self, tasks: int) -> None:
        """Creates the weights.

        Raises:
            MethodError: If there are not as many as tasks.
        """
        values = [1.0] * tasks if self.given is None else self.given
        if len(values) != tasks:
            raise MethodError(
                f"fixed: weights must hold one number per task of the run, in its order. Found {len(values)} for "
                f"{tasks} task{'s' * (tasks != 1)}."
            )
        super().configure(tasks)
        # Not persistent, because the arguments hold the weights.
        self.register_buffer("task_weights", torch.tensor(values), persistent=False)

    def combine_losses(self, losses: Tensor, ctx: Context) -> Tensor:
        """Returns the weighted sum of (A,) losses."""
        return (self.task_weights[ctx.index(self.task_weights)].to(losses) * losses).sum()


def _check(weights: Sequence[float]) -> None:
    numbers = isinstance(weights, Sequence) and all(isinstance(weight, (int, float)) for weight in weights)
    if not numbers or not all(weight >= 0 and math.isfinite(weight) for weight in weights) or not any(weights):
        raise MethodError(
            f"fixed: weights must be a list of finite numbers of at least 0, not all of them 0. Found {weights!r}."
        )
