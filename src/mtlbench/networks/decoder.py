"""The decoder: a neck shared by all tasks, and one head per task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtlbench.errors import SuiteError, unknown_name
from mtlbench.networks.blocks import full_precision, per_task, pooled, resize
from mtlbench.tasks import Task

UPSAMPLING = ("bilinear", "learned")
"""How predictions get from the neck's grid to pixels: by interpolation alone, or see `DenseHead`."""


class ConvBlock(nn.Sequential):
    """3 x 3 convolution, GroupNorm and GELU. Unlike BatchNorm, GroupNorm is independent of the split over ranks."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Builds the block.

        Args:
            inputs: Input channels.
            outputs: Output channels.
        """
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(math.gcd(8, outputs), outputs),
            nn.GELU(),
        )


class Neck(nn.Module):
    """Projects all maps, adds them at the finest scale and mixes them with a convolution. All tasks share it.

    If the finest grid is coarser than stride 4, the sum is upsampled by 2 before the convolution.

    Attributes:
        stride: Pixels between neighbouring positions of the result.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int) -> None:
        """Builds the neck.

        Args:
            channels: Channels of each map of the encoder.
            strides: Strides of the same maps, finest first.
            width: Channels of the result.
        """
        super().__init__()
        self.refine = 2 if strides[0] > 4 else 1
        self.stride = strides[0] // self.refine
        self.project = nn.ModuleList(nn.Conv2d(c, width, 1, bias=False) for c in channels)
        self.mix = ConvBlock(width, width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Returns (B, width, h, w).

        Args:
            maps: Maps of the encoder, finest first.
        """
        projected = [project(m) for project, m in zip(self.project, maps, strict=True)]
        size = projected[0].shape[-2:]
        total = torch.stack([p if p.shape[-2:] == size else resize(p, size) for p in projected]).sum(0)
        if self.refine > 1:
            total = resize(total, (self.refine * size[0], self.refine * size[1]))
        return self.mix(total)


class DenseHead(nn.Sequential):
    """Predicts values per pixel by a 3 x 3 convolution block, a 1 x 1 convolution and upsampling.

    With a factor f, the last convolution predicts all f x f pixels that a position stands for, so that a boundary may
    run through it. The rest of the way is bilinear.
    """

    def __init__(self, width: int, outputs: int, image_size: tuple[int, int], factor: int = 1) -> None:
        """Builds the head.

        Args:
            width: Channels of the neck.
            outputs: Channels to predict.
            image_size: Height and width of the prediction.
            factor: Side of the square of pixels that the last convolution predicts at a position.
        """
        last = nn.Conv2d(width, outputs * factor**2, 1)
        super().__init__(ConvBlock(width, width), last)
        if factor > 1:
            # All pixels of a square start equal, as if the value of its position was repeated.
            with torch.no_grad():
                for values in last.parameters():
                    values.copy_(values[:: factor**2].repeat_interleave(factor**2, 0))
            self.append(nn.PixelShuffle(factor))
        self.image_size = image_size

    def forward(self, shared: Tensor) -> Tensor:
        """Returns (B, outputs, H, W), at least float32."""
        return resize(full_precision(super().forward(shared)), self.image_size)


class TokenHead(nn.Linear):
    """Predicts values per token of a text by a linear layer on the neck's features of the tokens."""

    def forward(self, shared: Tensor) -> Tensor:
        """Returns (B, outputs, N), at least float32.

        Args:
            shared: Features (B, 1 + N, C) of the text and of its tokens.
        """
        return full_precision(super().forward(shared[:, 1:])).transpose(1, 2)


class VectorHead(nn.Linear):
    """Predicts values per sample by a linear layer on the neck's features, or on the mean of its map."""

    def forward(self, shared: Tensor) -> Tensor:
        """Returns (B, outputs), at least float32."""
        return full_precision(super().forward(pooled(shared)))


def head_factor(upsampling: str, stride: int) -> int:
    """Returns the factor of `DenseHead` for a suite's ``model.upsampling``.

    Args:
        upsampling: A key of `UPSAMPLING`.
        stride: Pixels between neighbouring positions of the map that the heads read.

    Raises:
        SuiteError: The name is unknown.
    """
    if upsampling not in UPSAMPLING:
        raise SuiteError(unknown_name("upsampling", upsampling, UPSAMPLING))
    return stride if upsampling == "learned" else 1


def build_heads(tasks: Mapping[str, Task], width: int, image_size: tuple[int, int], factor: int = 1) -> nn.ModuleDict:
    """Returns one head per task. Initial weights of a head do not depend on the other tasks.

    Args:
        tasks: Tasks by name.
        width: Channels of the neck.
        image_size: Height and width of dense predictions.
        factor: See `DenseHead`.
    """

    def build(name: str) -> nn.Module:
        task = tasks[name]
        return DenseHead(width, task.channels, image_size, factor) if task.dense else VectorHead(width, task.channels)

    return per_task("head", tasks, build)
