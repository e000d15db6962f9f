"""Scores, computation and drift over the frames of video clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from mtlbench.networks.blocks import full_precision
from mtlbench.networks.named import NamedModules
from mtlbench.networks.sharing.video import Frame
from mtlbench.tasks import Task


class VideoScores(nn.Module):
    """Accuracy and cost of one way to run clips, in total and by the number of frames since the key frame (lag)."""

    def __init__(self, tasks: Mapping[str, Task], lags: int) -> None:
        """Builds empty metrics.

        Args:
            tasks: Tasks by name.
            lags: Number of frames from one key frame to the next, or of a clip if that is less.
        """
        super().__init__()
        self.metrics = NamedModules({name: task.metric() for name, task in tasks.items()})
        # Scores by lag use monitors, because they are computed once per lag and must be fast.
        self.monitors = nn.ModuleList(
            NamedModules({name: task.monitor() for name, task in tasks.items()}) for _ in range(lags)
        )
        self._images = [0] * lags
        self._macs: list[dict[str, Tensor | float]] = [dict.fromkeys(tasks, 0.0) for _ in range(lags)]
        self._drift: list[dict[str, Tensor | float]] = [dict.fromkeys(tasks, 0.0) for _ in range(lags)]

    @torch.no_grad()
    def update(self, frame: Frame, free: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Adds a frame of some clips.

        Args:
            frame: Predictions and multiply-adds of all tasks.
            free: Predictions of the same networks without sharing.
            targets: Labels.
        """
        lag = frame.lag
        self._images[lag] += len(next(iter(targets.values())))
        for name in self.metrics:
            prediction = full_precision(frame.predictions[name])
            for metric in (self.metrics[name], cast(nn.ModuleDict, self.monitors[lag])[name]):
                cast(Metric, metric).update(prediction, targets[name])
            self._macs[lag][name] += frame.macs[name].sum()
            self._drift[lag][name] += drift(prediction, full_precision(free[name])).sum()

    def compute(self) -> dict[str, Any]:
        """Returns the results as plain values.

        ``scores`` is {task: {protocol: value}} and ``flops`` is {task: FLOPs per frame, two per multiply-add}. ``lags``
        holds the same by number of frames since the key frame, with ``drift`` {task: mean}; see `drift`. Scores by lag
        are those that tasks monitor during training.
        """
        return {
            "scores": {name: cast(Metric, metric).compute() for name, metric in self.metrics.items()},
            "flops": {n: 2 * sum(float(m[n]) for m in self._macs) / sum(self._images) for n in self.metrics},
            "lags": [self._of_lag(lag) for lag in range(len(self._images)) if self._images[lag]],
        }

    def _of_lag(self, lag: int) -> dict[str, Any]:
        images, monitors = self._images[lag], cast(nn.ModuleDict, self.monitors[lag])
        return {
            "lag": lag,
            "scores": {name: cast(Metric, monitor).compute() for name, monitor in monitors.items()},
            "flops": {name: 2 * float(macs) / images for name, macs in self._macs[lag].items()},
            "drift": {name: float(total) / images for name, total in self._drift[lag].items()},
        }


def drift(prediction: Tensor, free: Tensor) -> Tensor:
    """Returns the relative distance from predictions without sharing, ‖p - p_free‖ / ‖p_free‖ per image, (B,).

    Args:
        prediction: Raw prediction (B, ...).
        free: Prediction without sharing, of the same shape.
    """
    return (prediction - free).flatten(1).norm(dim=1) / free.flatten(1).norm(dim=1).clamp_min(1e-12)
