"""Measures the accuracy and computation of a shared network at several thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from mtlbench import distributed
from mtlbench.networks.blocks import full_precision
from mtlbench.networks.named import NamedModules
from mtlbench.networks.sharing.costs import attention_macs, decoder_macs, shared_macs
from mtlbench.networks.sharing.network import SharingNetwork
from mtlbench.tasks import Task


class ThresholdCurve(nn.Module):
    """Scores, shares of changed entries and FLOPs at several thresholds, exact over all ranks.

    Attributes:
        thresholds: Threshold θ of every point.
    """

    def __init__(self, tasks: Mapping[str, Task], thresholds: Sequence[float]) -> None:
        """Builds the metrics of all points.

        Args:
            tasks: Tasks by name.
            thresholds: Thresholds θ >= 0.
        """
        super().__init__()
        self.thresholds = tuple(thresholds)
        self.metrics = nn.ModuleList(
            NamedModules({name: task.metric() for name, task in tasks.items()}) for _ in self.thresholds
        )
        self._forget()

    @torch.no_grad()
    def update(self, network: SharingNetwork, image: Tensor, targets: Mapping[str, Tensor]) -> None:
        """Adds a batch at every threshold.

        Args:
            network: Network in evaluation mode.
            image: (B, 3, H, W) uint8, RGB.
            targets: Labels of some of the tasks.
        """
        # The base pass and the changed weights do not depend on the threshold and are computed once.
        names = [name for name in network.heads if name in targets]
        base, weights = network.base(image), network.weights()
        for point, threshold in enumerate(self.thresholds):
            trace = network.trace(image, weights, base, threshold)
            for name, prediction in network.decode(trace.maps, names).predictions.items():
                metric = cast(Metric, cast(nn.ModuleDict, self.metrics[point])[name])
                metric.update(full_precision(prediction), targets[name])
            counts = torch.stack(list(trace.changed().values()))
            self._changed[point] = counts + self._changed[point]
        self._images += len(image)

    def compute(self, network: SharingNetwork) -> list[dict[str, Any]]:
        """Returns one record per threshold, over all ranks, and resets the counts.

        A record holds ``threshold``, ``scores`` {task: {protocol: value}}, ``changed`` {place: share of entries in
        [0, 1]} and ``flops`` per image (two per multiply-add) for changed inputs and weights, attention and decoder.
        """
        device = next(network.parameters()).device
        sizes, kept = network.encoder.sizes(), {n: int(c) for n, c in network.deltas.kept().items()}
        (images,) = distributed.sum_counts([self._images], device)
        fixed = attention_macs(network.encoder) + decoder_macs(network)
        points = []
        for threshold, metrics, changed in zip(self.thresholds, self.metrics, self._changed, strict=True):
            scores = {}
            for name, metric in cast(nn.ModuleDict, metrics).items():
                scores[name] = cast(Metric, metric).compute()
                cast(Metric, metric).reset()
            counts = torch.zeros(len(sizes), dtype=torch.int64, device=device) + changed
            totals = distributed.sum_(counts).tolist()
            each = {place: total / max(1, images) for place, total in zip(sizes, totals, strict=True)}
            macs = shared_macs(network.encoder, each, kept) + fixed
            shares = {place: count / sizes[place] for place, count in each.items()}
            points.append({"threshold": threshold, "scores": scores, "changed": shares, "flops": 2 * macs})
        self._forget()
        return points

    def _forget(self) -> None:
        self._images = 0
        self._changed: list[Tensor | int] = [0] * len(self.thresholds)
