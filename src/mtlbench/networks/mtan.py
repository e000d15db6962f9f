"""MTAN: a shared encoder with a chain of attention masks per task on the maps of its stages."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.networks.base import Outputs
from mtlbench.networks.blocks import bottleneck, conv, norm, per_task, resize
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.encoder_stages import Stages
from mtlbench.tasks import Task


class AttentionMask(nn.Sequential):
    """1 x 1 convolution, norm, ReLU, 1 x 1 convolution, norm, sigmoid; a quarter as wide inside."""

    def __init__(self, inputs: int, channels: int) -> None:
        """Builds the layers.

        Args:
            inputs: Channels of the input.
            channels: Channels C of the mask.
        """
        inner = max(4, channels // 4)
        super().__init__(
            conv(inputs, inner, 1), norm(inner), nn.ReLU(), conv(inner, channels, 1), norm(channels), nn.Sigmoid()
        )


def _mask(inputs: int, channels: int, task: str) -> nn.Module:
    return AttentionMask(inputs, channels)


class MTANNetwork(DenseNetwork):
    """`DenseNetwork` in which every task reads the encoder's maps through its own masks. The encoder runs once.

    The mask of a stage reads the map before the stage's last block. From the second stage on, it also reads the task's
    masked map of the previous stage, refined by a block that all tasks share. If the stage has a single block, or if
    the map before its last block has another shape, the mask reads the stage's output instead.

    Attributes:
        masks: The mask of each task, for each stage.
        refine: Shared blocks between consecutive stages.
    """

    # Indexed by stage and task. mypy would treat the entries as plain modules.
    masks: Any

    def __init__(self, tasks: Mapping[str, Task], **model: Any) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            model: Arguments of `DenseNetwork`.

        Raises:
            SuiteError: The encoder cannot be run by stages (see `Stages`) or cannot be built.
        """
        super().__init__(tasks, **model)
        self.stages = Stages(self.encoder)
        channels = self.encoder.channels
        self.refine = nn.ModuleList(bottleneck(a, b) for a, b in zip(channels[:-1], channels[1:], strict=True))
        # Later masks also read the masked map of the previous stage, which the first stage does not have.
        sizes = [(channels[0], channels[0]), *((2 * c, c) for c in channels[1:])]
        self.masks = nn.ModuleList(
            per_task(f"mask {s}", tasks, functools.partial(_mask, *size)) for s, size in enumerate(sizes)
        )

    def forward(self, image: Tensor, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        pairs = list(self._pairs(self.encoder.normalise(image)))
        return Outputs({task: self.heads[task](self.neck(self.attended(pairs, task))) for task in tasks})

    def attended(self, pairs: Sequence[tuple[Tensor, Tensor]], task: str) -> list[Tensor]:
        """Returns the masked map of every stage, each of the map's own shape.

        Args:
            pairs: For each stage, the map that masks read and the map that they mask, (B, C, h, w) each.
            task: Name of the task.
        """
        seen: list[Tensor] = []
        for s, (before, shared) in enumerate(pairs):
            inputs = [before]
            if seen:
                inputs.append(resize(self.refine[s - 1](seen[-1]), before.shape[-2:]))
            seen.append(self.masks[s][task](torch.cat(inputs, 1)) * shared)
        return seen

    def _pairs(self, image: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        state = self.stages.start(image)
        for s in range(len(self.stages)):
            before = self.stages.run(s, state, slice(None, -1))
            state = self.stages.run(s, before, slice(-1, None))
            yield before.map if before.map.shape == state.map.shape else state.map, state.map

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's head and masks."""
        return [self.heads[task], *(masks[task] for masks in self.masks)]
