"""Control tasks: the action of an expert in a state, imitated by regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from mtlbench.metrics import Success
from mtlbench.tasks.base import Array, Task, masked, masked_sum
from mtlbench.tasks.blind import Blind, Mean


@dataclass(frozen=True)
class Action(Task):
    """The action of an expert. Target: float32 (B, A), NaN = missing.

    Loss: squared error, averaged over the components of an action. Score: the share of episodes that the network solves
    when it acts itself (`MTLDataModule.rollouts`); mean absolute error of actions on held-out demonstrations.

    Attributes:
        size: Components A of an action, >= 1.
    """

    size: int = 1
    kind: ClassVar[str] = "action"
    dense: ClassVar[bool] = False
    array: ClassVar[bool] = True

    @property
    def channels(self) -> int:  # noqa: D102
        return self.size

    def valid(self, target: Tensor) -> Tensor:
        """Returns which actions are known: bool (B,)."""
        return ~target.isnan().any(1)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        valid = self.valid(target)
        wanted = torch.where(valid[:, None], target, 0.0)
        return masked_sum((masked(prediction, valid) - wanted).square().mean(1), valid)

    def metric(self) -> Metric:  # noqa: D102
        return Success()

    def blind(self) -> Blind:
        """Returns the mean action."""
        return Mean(self.valid)

    def blank(self, height: int, width: int) -> Tensor:  # noqa: D102
        return torch.full((self.size,), float("nan"))

    def caption(self, value: Array) -> str:
        """Returns all components with three digits."""
        return ", ".join(f"{part:.3g}" for part in value) if (value == value).all() else "–"
