"""Building blocks that several architectures share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlbench.networks.encoder import Encoder
from mtlbench.networks.named import NamedModules
from mtlbench.seeding import seed_of


def norm(channels: int) -> nn.GroupNorm:
    """Returns a GroupNorm with at most 8 groups of at least 4 channels, which can normalise even a 1 x 1 map."""
    return nn.GroupNorm(math.gcd(8, max(1, channels // 4)), channels)


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    """Returns a convolution without bias that keeps the size of its input."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Returns a map (B, C, h, w) resampled bilinearly to ``size``, or the map itself if it already has that size."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def pooled(x: Tensor) -> Tensor:
    """Returns one feature vector (B, C) per sample.

    Args:
        x: A map (B, C, h, w), whose mean it is; features (B, 1 + N, C) of a text and its tokens, whose first it is; or
            (B, C).
    """
    if x.ndim == 3:
        return x[:, 0]
    return x.mean((2, 3)) if x.ndim == 4 else x


def full_precision(x: Tensor) -> Tensor:
    """Casts a tensor to at least float32, because losses, metrics and resampling need more precision than autocast."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextmanager
def seeded(label: str, *more: str) -> Iterator[None]:
    """Makes draws inside depend on the run's seed and a place in the network alone, and not on earlier draws.

    Contexts nest: inside, `per_task` and further ones derive their seeds from this one.

    Args:
        label: Place in the network.
        *more: Further parts of the place.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(label, torch.initial_seed(), *more))
        yield


def per_task(label: str, names: Iterable[str], build: Callable[[str], nn.Module]) -> nn.ModuleDict:
    """Builds one module per task, whose initial weights do not depend on the other tasks.

    Args:
        label: Position in the network. Modules at different positions get different weights.
        names: Names of the tasks.
        build: Builds the module of a task.
    """
    modules = NamedModules()
    for name in names:
        # Each task has its own seed, so adding or removing a task changes no other task's weights.
        with seeded(label, name):
            modules[name] = build(name)
    return modules


class Residual(nn.Module):
    """ReLU(body(x) + skip(x)); the skip is a 1 x 1 convolution if the number of channels changes."""

    def __init__(self, body: nn.Module, inputs: int, outputs: int) -> None:
        """Builds the block.

        Args:
            body: Module that maps ``inputs`` to ``outputs`` channels.
            inputs: Input channels.
            outputs: Output channels.
        """
        super().__init__()
        self.body = body
        same = inputs == outputs
        self.skip = nn.Identity() if same else nn.Sequential(conv(inputs, outputs, 1), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, outputs, h, w)."""
        return F.relu(self.body(x) + self.skip(x))


def basic_block(inputs: int, outputs: int) -> Residual:
    """Returns a residual block of two 3 x 3 convolutions."""
    body = nn.Sequential(conv(inputs, outputs), norm(outputs), nn.ReLU(), conv(outputs, outputs), norm(outputs))
    return Residual(body, inputs, outputs)


def bottleneck(inputs: int, outputs: int) -> Residual:
    """Returns a residual block of 1 x 1, 3 x 3 and 1 x 1 convolutions, a quarter as wide inside."""
    inner = max(4, outputs // 4)
    body = nn.Sequential(
        conv(inputs, inner, 1),
        norm(inner),
        nn.ReLU(),
        conv(inner, inner),
        norm(inner),
        nn.ReLU(),
        conv(inner, outputs, 1),
        norm(outputs),
    )
    return Residual(body, inputs, outputs)


class SqueezeExcite(nn.Module):
    """x · σ(W₂ ReLU(W₁ mean(x))): a gate in (0, 1) per image and channel."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        """Builds the gate.

        Args:
            channels: Channels of the map.
            reduction: Channels divided by the hidden width, which is at least 4.
        """
        super().__init__()
        hidden = max(4, channels // reduction)
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Returns the gated map (B, C, h, w)."""
        return x * self.gate(x.mean((2, 3)))[:, :, None, None]


class Predictor(nn.Conv2d):
    """1 x 1 convolution to a task's channels, then bilinear upsampling to image size."""

    def __init__(self, width: int, outputs: int, image_size: Sequence[int]) -> None:
        """Builds the layer.

        Args:
            width: Input channels.
            outputs: Channels to predict.
            image_size: Height and width of the prediction.
        """
        super().__init__(width, outputs, 1)
        self.image_size = tuple(image_size)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, outputs, H, W), at least float32: autocast's bfloat16 is too coarse for losses."""
        y = super().forward(x)
        return resize(y.to(torch.promote_types(y.dtype, torch.float32)), self.image_size)


class Pyramid(nn.Module):
    """Projects the maps of an encoder to an equal number of channels at decreasing resolution.

    The maps of a CNN keep their strides. Those of a vision transformer, which share one grid, are resampled to strides
    4, 8, 16, ..., with the shallowest map at the finest stride.

    Attributes:
        sizes: Height and width of each map, finest first.
    """

    def __init__(self, encoder: Encoder, width: int, image_size: Sequence[int]) -> None:
        """Builds the projections.

        Args:
            encoder: Encoder whose maps are projected.
            width: Channels of the projected maps.
            image_size: Height and width of images.
        """
        super().__init__()
        one_grid = len(set(encoder.strides)) == 1
        strides = [4 << i for i in range(len(encoder.strides))] if one_grid else encoder.strides
        self.sizes = [tuple(math.ceil(side / stride) for side in image_size) for stride in strides]
        self.project = nn.ModuleList(conv(channels, width, 1) for channels in encoder.channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Returns (B, width, *sizes[i]) for each of the encoder's maps."""
        return [resize(p(m), size) for p, m, size in zip(self.project, maps, self.sizes, strict=True)]
