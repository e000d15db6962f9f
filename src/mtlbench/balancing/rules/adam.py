"""Adam on a vector with one number per task, which is state of a rule and not a parameter of the run's optimiser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TaskAdam(nn.Module):
    """Values of the tasks and the state of the Adam that moves them, all of it in buffers for the checkpoint.

    Each task counts its own steps: a task that is absent in a step keeps its value and its moments.

    Args:
        values: (T,) at the start.
        lr: Learning rate.

    Attributes:
        values: (T,) in float64.
    """

    values: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor

    def __init__(self, values: Tensor, lr: float):
        super().__init__()
        self.lr = lr
        self.register_buffer("values", values.double())
        for name in ("first", "second", "steps"):
            self.register_buffer(name, torch.zeros_like(self.values))

    def step(self, gradient: Tensor, tasks: Sequence[int]) -> None:
        """Moves the values of some tasks against their gradient.

        Args:
            gradient: (A,).
            tasks: Indices of the A tasks.
        """
        i, gradient = list(tasks), gradient.to(self.values)
        self.steps[i] += 1
        self.first[i] = 0.9 * self.first[i] + 0.1 * gradient
        self.second[i] = 0.999 * self.second[i] + 0.001 * gradient**2
        first = self.first[i] / (1 - 0.9 ** self.steps[i])
        second = self.second[i] / (1 - 0.999 ** self.steps[i])
        self.values[i] -= self.lr * first / (second.sqrt() + 1e-8)
