"""Knowledge distillation: the tapped features, the student's adapters, and the distance to the teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtlbench.networks.base import Outputs
from mtlbench.networks.blocks import conv, full_precision, per_task
from mtlbench.networks.dense import DenseNetwork

EPSILON = 1e-6
"""Constant added to squared norms, which gives a zero feature a zero direction and a finite gradient."""


def taps(network: DenseNetwork, image: Tensor) -> dict[str, Tensor]:
    """Returns the distilled features without running a head.

    Args:
        network: A dense network, either a teacher or the student.
        image: (B, 3, H, W) uint8, RGB.

    Returns:
        ``encoder``: the encoder's last map (B, C, h, w); ``decoder``: the heads' input (B, decoder_channels, h', w').
    """
    maps = network.encoder(network.encoder.normalise(image))
    return {"encoder": maps[-1], "decoder": network.neck(maps)}


class TappedNetwork(DenseNetwork):
    """`DenseNetwork` that also returns its taps in ``Outputs.statistics["taps"]``. All tasks share the taps."""

    def forward(self, image: Tensor, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        found = taps(self, image)
        shared = found["decoder"]
        return Outputs({task: self.heads[task](shared) for task in tasks}, shared, {"taps": found})

    def tap_channels(self) -> dict[str, int]:
        """Returns the channels of every tap."""
        return {"encoder": self.encoder.channels[-1], "decoder": cast(nn.Conv2d, self.neck.mix[0]).out_channels}


class Adapters(nn.Module):
    """Linear maps of the student's channels, one per task and tap, as one feature cannot match T teachers at once."""

    # Indexed by task and tap. mypy would treat the entries as plain modules.
    maps: Any

    def __init__(self, tasks: Sequence[str], channels: Mapping[str, int]) -> None:
        """Builds the maps. Their initial weights do not depend on the other tasks.

        Args:
            tasks: Tasks of the student.
            channels: Channels of every tap, equal for student and teachers.
        """
        super().__init__()
        self.maps = per_task(
            "adapter", tasks, lambda _: nn.ModuleDict({tap: conv(size, size, 1) for tap, size in channels.items()})
        )

    def forward(self, task: str, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """Returns the `direction_distance` between adapted student and teacher, summed over the taps, 0-d.

        Args:
            task: Task of the teacher.
            student: Taps of the student.
            teacher: Taps of the teacher, of equal shapes.
        """
        adapters = self.maps[task]
        return torch.stack([direction_distance(adapters[tap](student[tap]), teacher[tap]) for tap in adapters]).sum()


def direction_distance(one: Tensor, other: Tensor) -> Tensor:
    """Returns the mean over images and pixels of ‖x/‖x‖ − y/‖y‖‖², 0-d, in 0..4: 2 − 2 cos(x, y).

    Args:
        one: x, (B, C, h, w). Norms are over the channels.
        other: y, of the same shape.
    """
    return (_direction(one) - _direction(other)).square().sum(1).mean()


def _direction(x: Tensor) -> Tensor:
    x = full_precision(x)  # A sum of squares overflows in float16 and is inexact in bfloat16.
    return x * (x.square().sum(1, keepdim=True) + EPSILON).rsqrt()
