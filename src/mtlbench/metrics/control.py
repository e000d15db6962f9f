"""Metrics of control: how often a network that acts solves its task, and how far its actions are from the expert's."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from mtlbench.metrics.protocol import higher, lower


class Success(Metric):
    """Share of episodes that end with the task solved, and mean absolute error of actions; NaN actions do not count.

    Batches add to the error. Episodes are added by whoever lets the network act, see `mtlbench.training.rollouts`.
    """

    full_state_update = False
    protocols = (*higher("success@1"), *lower("action_error@1"))
    error: Tensor
    count: Tensor
    solved: Tensor
    episodes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("error", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("count", "solved", "episodes"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds the errors of predicted actions (B, A) against the expert's (B, A)."""
        valid = ~target.isnan().any(1)
        error = (prediction[valid].double() - target[valid].double()).abs()
        self.error += error.sum()
        self.count += error.numel()

    def add_episodes(self, solved: int, episodes: int) -> None:
        """Adds finished episodes.

        Args:
            solved: How many of them ended with the task solved.
            episodes: How many there were.
        """
        self.solved += solved
        self.episodes += episodes
        self._update_count += 1  # What torchmetrics does in `update`: it caches results otherwise.
        self._computed = None

    def compute(self) -> dict[str, float]:
        """Returns the share in [0, 1] and the error in units of the action; NaN without episodes or labels."""
        return {
            "success@1": float(self.solved / self.episodes),
            "action_error@1": float(self.error / self.count),
        }
