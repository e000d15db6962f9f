"""`Task`: one thing to predict, with its loss, its ignore rule, its metrics and their direction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torchmetrics import Metric

from mtlbench.metrics.protocol import Protocol

IGNORE = 255
"""Ignore value of every dense label: class ids and, in all channels, depth, normals and edges."""


@dataclass(frozen=True)
class Task(ABC):
    """One thing to predict.

    Attributes:
        name: Key in ``batch["targets"]`` and in the network's predictions.
        scale: Static factor on the loss, applied before any balancing.
        optional: Whether the task is dropped when the data lacks it altogether.
    """

    name: str
    scale: float = 1.0
    optional: bool = False

    kind: ClassVar[str]
    dense: ClassVar[bool] = True
    in_delta_m: ClassVar[bool] = True

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels that the head must predict."""

    @property
    def protocols(self) -> tuple[Protocol, ...]:
        """What `metric` computes; the first one enters Δm and the ranking."""
        return cast(tuple[Protocol, ...], self.metric().protocols)

    @abstractmethod
    def valid(self, target: Tensor) -> Tensor:
        """Returns which elements carry a label: bool, (B, H, W) for dense tasks, else (B,)."""

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Returns the sum of the loss over valid elements, a scalar in the graph of ``prediction``.

        Args:
            prediction: (B, channels, H, W) or (B, channels), float32, raw network output.
            target: As the kind's docstring says.
        """

    @abstractmethod
    def metric(self) -> Metric:
        """Returns a fresh metric: ``update(prediction, target)``, ``compute() -> {protocol id: float}``.

        Its ``protocols`` tell what it computes.
        """

    def monitor(self) -> Metric:
        """Returns what is computed during training, where `metric` takes too long; default: `metric`."""
        return self.metric()

    @abstractmethod
    def blank(self, height: int, width: int) -> Tensor:
        """Returns the target of a sample that has no label for this task."""

    def decode(self, prediction: Tensor) -> Tensor:
        """Returns a raw prediction in the form of a target: class ids, probability, unit vector, metres, number."""
        return prediction

    def count(self, target: Tensor) -> int:
        """Returns the number of valid elements; the same on every device and independent of predictions."""
        return int(self.valid(target).sum())

    def describe(self) -> dict[str, Any]:
        """Returns the plain record that enters a run's identity."""
        return {"kind": self.kind, **asdict(self), "protocols": [asdict(p) for p in self.protocols]}

    def with_options(self, **changes: Any) -> Task:
        """Returns a copy with another ``scale`` or ``optional``."""
        return replace(self, **changes)


def masked(prediction: Tensor, valid: Tensor) -> Tensor:
    """Returns the prediction (B, C, ...) with zeros where ``valid`` (B, ...) is False.

    Before the loss and not after it: an ignored element may hold NaN, and 0 · NaN would poison the gradient.
    """
    return torch.where(valid[:, None], prediction, 0.0)


def masked_sum(per_element: Tensor, valid: Tensor) -> Tensor:
    """Returns the sum over elements where ``valid`` is True."""
    return torch.where(valid, per_element, 0.0).sum()
