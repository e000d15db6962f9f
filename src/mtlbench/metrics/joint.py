"""Combines several metrics of one task."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torchmetrics import Metric

from mtlbench.metrics.protocol import Protocol


class Joint(Metric):
    """Passes every batch to several metrics and returns all their values.

    Args:
        metrics: Metrics that compute ``{protocol id: value}`` under different ids.
    """

    full_state_update = False

    def __init__(self, *metrics: Metric):
        super().__init__()
        self.metrics = nn.ModuleList(metrics)
        every = [cast(tuple[Protocol, ...], metric.protocols) for metric in metrics]
        self.protocols = tuple(protocol for protocols in every for protocol in protocols)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Updates each metric."""
        for metric in self.metrics:
            cast(Metric, metric).update(prediction, target)

    def compute(self) -> dict[str, float]:
        """Returns all values; each metric reduces its own states over ranks."""
        return {key: value for metric in self.metrics for key, value in cast(Metric, metric).compute().items()}

    def reset(self) -> None:
        """Resets every metric."""
        super().reset()
        for metric in self.metrics:
            cast(Metric, metric).reset()
