"""Cross-stitch units: channel-wise linear combinations of the maps of all tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class StitchUnit(nn.Module):
    """f'_i = Σ_j a_ij f_j with one a_ij per channel: the unit of task i after one stage."""

    def __init__(self, channels: int, tasks: int, index: int, *, own: float, other: float) -> None:
        """Builds the unit.

        Args:
            channels: Channels C of the maps.
            tasks: Number of tasks T.
            index: Index i of the unit's task.
            own: Initial a_ii.
            other: Initial a_ij, j ≠ i.
        """
        super().__init__()
        weight = torch.full((tasks, channels), other)
        weight[index] = own
        self.weight = nn.Parameter(weight)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Returns (B, C, h, w) from T maps of that shape."""
        terms = [row[:, None, None] * m for row, m in zip(self.weight.unbind(), maps, strict=True)]
        return sum(terms[1:], terms[0])
