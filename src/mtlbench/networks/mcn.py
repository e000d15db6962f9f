"""MultiTask-CenterNet: an encoder, transposed convolutions to a stride of 4, and a head of its own for every task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.blocks import full_precision, norm, per_task, resize
from mtlbench.networks.decoder import ConvBlock, build_heads, head_factor
from mtlbench.networks.encoder import Encoder, build_encoder
from mtlbench.networks.family import Model
from mtlbench.networks.named import NamedModules
from mtlbench.tasks import HeatMaps, Task

STRIDE = 4
"""Largest stride, in pixels, of the map that all heads read."""


class Upsampling(nn.Module):
    """Transposed convolutions that double the size of a map, until its stride is at most `STRIDE`.

    Attributes:
        stride: Pixels between neighbouring positions of the result.
    """

    def __init__(self, channels: int, stride: int, width: int) -> None:
        """Builds the layers.

        Args:
            channels: Channels of the map.
            stride: Its stride.
            width: Channels of the result.
        """
        super().__init__()
        count = max(0, math.ceil(math.log2(stride / STRIDE)))
        self.stride = max(1, stride // 2**count)
        blocks = [_double(channels if i == 0 else width, width) for i in range(count)]
        self.blocks = nn.Sequential(*blocks or [ConvBlock(channels, width)])

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, width, h, w)."""
        return self.blocks(x)


class HeatHead(nn.Module):
    """Predicts every quantity of a `HeatMaps` task by a branch: a 3 x 3 convolution, ReLU and a 1 x 1 convolution."""

    def __init__(self, task: HeatMaps, width: int, image_size: tuple[int, int]) -> None:
        """Builds the branches.

        Args:
            task: What is predicted.
            width: Channels of the map that is read, and of each branch.
            image_size: Height and width of the prediction.
        """
        super().__init__()
        self.task, self.image_size = task, image_size
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, outputs, 1))
            for outputs in task.branches
        )

    def forward(self, shared: Tensor) -> Tensor:
        """Returns (B, channels, H, W), at least float32; the task's `grid` recovers the map from it."""
        raw = full_precision(torch.cat([branch(shared) for branch in self.branches], 1))
        height, width = self.image_size
        grid = resize(raw, [-(-side // self.task.stride) for side in self.image_size])
        return self.task.spread(grid, height, width)


class MCNNetwork(MTLNetwork):
    """One encoder, whose coarsest map is upsampled by transposed convolutions; each task has a head on the result."""

    def __init__(self, tasks: Mapping[str, Task], **model: Any) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            model: The keys of a suite's ``model`` section; see `Model`.

        Raises:
            SuiteError: See `build_encoder` and `head_factor`.
        """
        super().__init__()
        found = Model(**model)
        (height, width), channels = found.image_size, found.decoder_channels
        size = (height, width)
        self.encoder = build_encoder(found.name, image_size=size, weights=found.weights, options=found.encoder_options)
        _freeze_idle(self.encoder, size)
        self.upsampling: Any = Upsampling(self.encoder.channels[-1], self.encoder.strides[-1], channels)
        heat = {name: task for name, task in tasks.items() if isinstance(task, HeatMaps)}
        others = {name: task for name, task in tasks.items() if name not in heat}
        factor = head_factor(found.upsampling, self.upsampling.stride)
        heads = {
            **per_task("head", heat, lambda name: HeatHead(heat[name], channels, size)),
            **build_heads(others, channels, size, factor),
        }
        self.heads = NamedModules({name: heads[name] for name in tasks})

    def forward(self, inputs: Any, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        shared = self.upsampling(self.encoder(self.encoder.normalise(inputs))[-1])
        return Outputs({task: self.heads[task](shared) for task in tasks}, shared)

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the last transposed convolution with its normalisation."""
        return list(self.upsampling.blocks[-1].parameters())

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's head."""
        return [self.heads[task]]


def _double(inputs: int, outputs: int) -> nn.Sequential:
    convolution = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, norm(outputs), nn.ReLU())


def _freeze_idle(encoder: Encoder, size: tuple[int, int]) -> None:
    """Freezes parameters that reach finer maps only: nothing reads those maps, and DDP waits for every gradient."""
    learnt = [p for p in encoder.parameters() if p.requires_grad]
    training = encoder.training
    encoder.eval()  # Running statistics stay as they are.
    coarsest = encoder(torch.zeros(1, 3, *size, dtype=encoder.mean.dtype))[-1]
    encoder.train(training)
    found = torch.autograd.grad(coarsest.sum(), learnt, allow_unused=True)
    for parameter, gradient in zip(learnt, found, strict=True):
        parameter.requires_grad_(gradient is not None)
