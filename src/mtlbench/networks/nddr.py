"""NDDR units: 1 x 1 convolutions that reduce the concatenated maps of all tasks to one map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlbench.networks.blocks import conv, norm


class NDDRUnit(nn.Module):
    """f'_i = ReLU(norm(W_i [f_1; ...; f_T])) with a matrix W_i (C, T·C)."""

    def __init__(self, channels: int, tasks: int, index: int, *, own: float, other: float) -> None:
        """Builds the unit.

        Args:
            channels: Channels C of the maps.
            tasks: Number of tasks T.
            index: Index i of the unit's task.
            own: Initial diagonal of the block of W_i that reads f_i. Off-diagonal entries are 0.
            other: Initial diagonal of the other blocks.
        """
        super().__init__()
        self.reduce = conv(tasks * channels, channels, 1)
        self.norm: nn.Module = norm(channels)
        factors = [own if j == index else other for j in range(tasks)]
        weight = torch.cat([factor * torch.eye(channels) for factor in factors], 1)
        self.reduce.weight = nn.Parameter(weight[:, :, None, None])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Returns (B, C, h, w) from T maps of that shape."""
        return F.relu(self.norm(self.reduce(torch.cat(list(maps), 1))))
