"""MTI-Net's decoder, in which tasks exchange features at every scale of a pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.networks.blocks import Predictor, Pyramid, SqueezeExcite, basic_block, conv, norm, per_task, resize
from mtlbench.networks.encoder import Encoder
from mtlbench.networks.feature_exchange import ExchangeDecoder, FeatureExchange
from mtlbench.tasks import Task


class FeaturePropagation(nn.Module):
    """Input of the next finer scale: each task's feature plus a gated summary of all tasks."""

    def __init__(self, label: str, tasks: Sequence[str], width: int) -> None:
        """Builds the module.

        Args:
            label: Position in the network; see `per_task`.
            tasks: Names of the T tasks.
            width: Channels C of a task's feature.
        """
        super().__init__()
        total = len(tasks) * width
        inner = max(4, total // 4)
        self.tasks = list(tasks)
        self.logits = nn.Sequential(basic_block(total, inner), nn.Conv2d(inner, total, 1))
        self.reduce = basic_block(total, width)
        self.select = per_task(f"{label} select", tasks, lambda _: SqueezeExcite(width))

    def mask(self, stacked: Tensor) -> Tensor:
        """Returns the softmax over tasks for each channel and position.

        Args:
            stacked: Features (B, T, C, h, w). The result has the same shape.
        """
        return self.logits(stacked.flatten(1, 2)).view_as(stacked).softmax(1)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns (B, C, h, w) by task from features of that shape."""
        stacked = torch.stack([features[task] for task in self.tasks], 1)
        summary = self.reduce((self.mask(stacked) * stacked).flatten(1, 2))
        return {task: features[task] + self.select[task](summary) for task in self.tasks}


class Aggregation(nn.Module):
    """Joins one task's features of all scales at the finest scale and predicts the task."""

    def __init__(self, scales: int, width: int, outputs: int, image_size: Sequence[int]) -> None:
        """Builds the head.

        Args:
            scales: Number of scales.
            width: Channels at each scale.
            outputs: Channels to predict.
            image_size: Height and width of the prediction.
        """
        super().__init__()
        self.fuse = nn.Sequential(conv(scales * width, width, 1), norm(width), nn.ReLU())
        self.predict = Predictor(width, outputs, image_size)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Returns (B, outputs, H, W) from one (B, width, h, w) per scale, finest first."""
        size = features[0].shape[-2:]
        return self.predict(self.fuse(torch.cat([resize(f, size) for f in features], 1)))


class MTIDecoder(ExchangeDecoder):
    """Features per scale and task, computed from coarse to fine; an exchange within each scale; one head per task."""

    # One entry per scale, finest first. mypy would treat the entries as plain modules.
    features: Any
    propagate: Any
    distil: Any
    supervise: Any

    def __init__(self, tasks: Mapping[str, Task], encoder: Encoder, width: int, image_size: tuple[int, int]) -> None:
        """Builds the decoder.

        Args:
            tasks: Dense tasks by name.
            encoder: Encoder whose maps are decoded.
            width: Channels of a task's feature, at every scale.
            image_size: Height and width of predictions.
        """
        super().__init__()
        names = list(tasks)
        self.pyramid = Pyramid(encoder, width, image_size)
        scales = len(self.pyramid.sizes)

        def features(scale: int) -> nn.ModuleDict:
            inputs = width if scale == scales - 1 else 2 * width
            return per_task(
                f"features {scale}",
                names,
                lambda _: nn.Sequential(basic_block(inputs, width), basic_block(width, width)),
            )

        self.features = nn.ModuleList(features(s) for s in range(scales))
        # Entry s passes features from scale s + 1 to scale s.
        self.propagate = nn.ModuleList(FeaturePropagation(f"propagate {s}", names, width) for s in range(scales - 1))
        # Checkpoints contain this name, and the label seeds the weights. Neither can be renamed.
        self.distil = nn.ModuleList(FeatureExchange(f"distil {s}", names, width) for s in range(scales))
        self.supervise = nn.ModuleList(
            per_task(f"supervise {s}", names, lambda t: Predictor(width, tasks[t].channels, image_size))
            for s in range(scales)
        )
        self.heads = per_task("head", names, lambda t: Aggregation(scales, width, tasks[t].channels, image_size))

    def scale_features(self, maps: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Returns the features (B, width, h, w) by task of each scale, finest first.

        Args:
            maps: Maps of the encoder, finest first.
        """
        levels = self.pyramid(maps)
        found: list[dict[str, Tensor]] = []
        for scale in reversed(range(len(levels))):
            level, blocks = levels[scale], self.features[scale]
            if found:
                coarser = self.propagate[scale](found[0])
                inputs = {t: torch.cat((level, resize(c, level.shape[-2:])), 1) for t, c in coarser.items()}
            else:
                inputs = dict.fromkeys(self.heads, level)
            found.insert(0, {t: blocks[t](x) for t, x in inputs.items()})
        return found

    def forward(
        self, maps: Sequence[Tensor], tasks: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
        """Predicts the named tasks; in training, also at every scale; see `ExchangeDecoder`."""
        features = self.scale_features(maps)
        predictions = {
            t: self.heads[t]([exchange(f, t) for exchange, f in zip(self.distil, features, strict=True)]) for t in tasks
        }
        if not self.training:
            return predictions, {}
        return predictions, {
            t: [heads[t](f[t]) for heads, f in zip(self.supervise, features, strict=True)] for t in tasks
        }

    def owned(self, task: str) -> list[nn.Module]:
        """Returns the task's heads and the convolutions that refine its features."""
        incoming = [module for exchange in self.distil for module in exchange.owned(task)]
        return [self.heads[task], *(heads[task] for heads in self.supervise), *incoming]
