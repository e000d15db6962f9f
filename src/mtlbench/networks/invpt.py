"""InvPT's decoder: attention over the tokens of all tasks, at three increasing resolutions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlbench.errors import MethodError
from mtlbench.networks.blocks import Predictor, conv, norm, per_task, resize
from mtlbench.networks.decoder import DenseHead
from mtlbench.networks.encoder import Encoder
from mtlbench.networks.feature_exchange import ExchangeDecoder
from mtlbench.tasks import Task

STRIDES = (16, 8, 4)
"""Strides of the three stages, whatever the encoder."""

FEWEST = 8
"""Smallest number of channels of a stage. LayerNorm over two or three channels keeps little more than their signs."""


def _conv_block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs), norm(outputs), nn.ReLU())


def _pooled(maps: Tensor, factor: int) -> Tensor:
    """Returns the window means (B, T, C, ⌈h/factor⌉, ⌈w/factor⌉) of maps (B, T, C, h, w)."""
    means = F.avg_pool2d(maps.flatten(0, 1), factor, ceil_mode=True, count_include_pad=False)
    return means.unflatten(0, maps.shape[:2])


def _tokens(maps: Tensor) -> Tensor:
    """Returns maps (B, T, C, h, w) as tokens (B, T·h·w, C), one task after the other."""
    return maps.permute(0, 1, 3, 4, 2).flatten(1, 3)


class JointAttention(nn.Module):
    """Adds to x the attention of each position of each task to the positions of all tasks.

    Queries are means over 2 x 2 positions, keys and values over ``pool`` x ``pool``. The scores of the coarser stage
    enter as softmax(Q Kᵀ/√d + β ⊙ upsampled(scores)) V with a learned β per head, initially 1.
    """

    def __init__(self, channels: int, heads: int, pool: int, *, first: bool) -> None:
        """Builds the layer.

        Args:
            channels: C, a multiple of ``heads``.
            heads: Attention heads.
            pool: Side of the windows of keys and values.
            first: Whether this is the first stage, which receives no scores.
        """
        super().__init__()
        self.heads, self.pool = heads, pool
        self.norm = nn.LayerNorm(channels)
        self.query, self.value, self.out = (nn.Linear(channels, channels) for _ in range(3))
        self.key = nn.Linear(
            channels, channels, bias=False
        )  # Softmax cancels a bias of the keys, so its gradient would be noise.
        self.passing = None if first else nn.Parameter(torch.ones(heads))

    def forward(self, x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the new maps, and the scores (B, heads, T, ⌈h/2⌉, ⌈w/2⌉, keys) to pass on.

        Args:
            x: (B, T, C, h, w).
            previous: Scores of the previous stage, for the same number of keys.
        """
        # LayerNorm needs the channels last, and the maps of all tasks are normalised with the same weights.
        normed = self.norm(x.movedim(2, -1)).movedim(-1, 2)
        asking = _pooled(normed, 2)
        shape = (asking.shape[1], *asking.shape[3:])  # (T, h/2, w/2)
        known = _tokens(_pooled(normed, self.pool))
        queries, keys, values = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, C / heads)
            for layer, tokens in ((self.query, _tokens(asking)), (self.key, known), (self.value, known))
        )
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])
        # All stages pool their keys to the same stride, so scores differ only in the grid of the queries.
        if previous is not None and self.passing is not None:
            scores = scores + self.passing[:, None, None] * _upsampled(previous, shape[1:]).flatten(2, 4)
        mixed = self.out((scores.softmax(3) @ values).transpose(1, 2).flatten(2))  # (B, T·h/2·w/2, C)
        maps = mixed.unflatten(1, shape).movedim(-1, 2)
        grown = resize(maps.flatten(0, 1), x.shape[3:]).unflatten(0, x.shape[:2])
        return x + grown, scores.unflatten(2, shape)


def _upsampled(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Resamples the queries' grid (h, w) of scores (B, heads, T, h, w, keys) to ``size``."""
    as_maps = scores.permute(0, 1, 2, 5, 3, 4)
    return resize(as_maps.flatten(0, 2), size).unflatten(0, as_maps.shape[:3]).permute(0, 1, 2, 4, 5, 3)


class Stage(nn.Module):
    """Refines the maps of all tasks at one resolution. All tasks share it."""

    def __init__(
        self, index: int, channels: Sequence[int], heads: int, skips: Sequence[int], size: tuple[int, int]
    ) -> None:
        """Builds the stage.

        Args:
            index: 0, 1 or 2.
            channels: Channels of each stage.
            heads: Attention heads.
            skips: Channels of the encoder's maps that enter this stage.
            size: Height and width of this stage's maps.
        """
        super().__init__()
        c = channels[index]
        self.size = size
        self.up = _conv_block(channels[index - 1], c) if index else nn.Identity()
        self.skips = nn.ModuleList(conv(inputs, c, 1) for inputs in skips)
        self.attention = JointAttention(c, heads, 2 << index, first=index == 0)
        self.mlp = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))

    def forward(self, x: Tensor, maps: Sequence[Tensor], scores: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the maps of all tasks (B, T, channels, *size) and the attention scores.

        Args:
            x: Maps (B, T, C, h, w) of the previous stage.
            maps: The encoder's maps that enter this stage.
            scores: Scores of the previous stage.
        """
        x = self.up(resize(x.flatten(0, 1), self.size)).unflatten(0, x.shape[:2])
        for project, m in zip(self.skips, maps, strict=True):
            x = x + resize(project(m), self.size)[:, None]
        x, scores = self.attention(x, scores)
        return x + self.mlp(x.movedim(2, -1)).movedim(-1, 2), scores


class InvPTDecoder(ExchangeDecoder):
    """Preliminary features and predictions per task, three joint stages, and one head per task on their sum."""

    stages: Any

    def __init__(
        self, tasks: Mapping[str, Task], encoder: Encoder, width: int, image_size: tuple[int, int], *, heads: int = 2
    ) -> None:
        """Builds the decoder.

        Args:
            tasks: Dense tasks by name.
            encoder: Encoder whose maps are decoded. The deepest map enters the first stage, the second deepest the
                second, and the others the third.
            width: Channels of the first stage. The others have half and a quarter of it, but at least `FEWEST`.
            image_size: Height and width of predictions.
            heads: Attention heads, >= 1.

        Raises:
            MethodError: ``width`` is too small, or the channels of a stage are not a multiple of ``heads``.
        """
        super().__init__()
        channels = [max(FEWEST, width >> i) for i in range(3)]
        if heads < 1 or width < FEWEST or any(c % heads for c in channels):
            raise MethodError(
                f"decoder_channels must be at least {FEWEST}, and heads must divide the channels of every stage. Found "
                f"decoder_channels={width}, which gives stages of {channels}, and heads={heads}. Change one of them."
            )
        sizes = [(math.ceil(image_size[0] / stride), math.ceil(image_size[1] / stride)) for stride in STRIDES]
        # The deepest map is the input of the first stage, so only the other maps enter through skips.
        skips = [[], encoder.channels[-2:-1], encoder.channels[:-2]]
        self.base = sizes[0]
        self.project = conv(encoder.channels[-1], width, 1)
        self.initial = per_task(
            "initial", tasks, lambda _: nn.Sequential(_conv_block(width, width), _conv_block(width, width))
        )
        self.supervise = per_task("supervise", tasks, lambda t: Predictor(width, tasks[t].channels, image_size))
        self.stages = nn.ModuleList(Stage(i, channels, heads, skips[i], sizes[i]) for i in range(3))
        self.fuse = nn.ModuleList(conv(c, width, 1) for c in channels)
        self.heads = per_task("head", tasks, lambda t: DenseHead(width, tasks[t].channels, image_size))

    def forward(
        self, maps: Sequence[Tensor], tasks: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
        """Predicts the named tasks; in training, also from their preliminary features."""
        base = resize(self.project(maps[-1]), self.base)
        features = {task: block(base) for task, block in self.initial.items()}
        # The joint stages need the features of all tasks, even if only some are predicted.
        joined = dict(zip(features, self.joint(torch.stack(list(features.values()), 1), maps).unbind(1), strict=True))
        predictions = {task: self.heads[task](joined[task]) for task in tasks}
        initial = {task: [self.supervise[task](features[task])] for task in tasks} if self.training else {}
        return predictions, initial

    def joint(self, x: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Returns the sum of the maps of all stages at stride 4, (B, T, width, h, w).

        Args:
            x: Preliminary features (B, T, width, h, w).
            maps: Maps of the encoder.
        """
        scores, total = None, torch.zeros((), dtype=x.dtype, device=x.device)
        for stage, fuse, entering in zip(self.stages, self.fuse, ([], maps[-2:-1], maps[:-2]), strict=True):
            x, scores = stage(x, entering, scores)
            total = total + resize(fuse(x.flatten(0, 1)), self.stages[-1].size)
        return total.unflatten(0, x.shape[:2])

    def owned(self, task: str) -> list[nn.Module]:
        """Returns the task's heads."""
        return [self.heads[task], self.supervise[task]]
