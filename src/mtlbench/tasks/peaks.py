"""Places on a grid: boxes of no area, cells, Gaussians around cells, their loss, and the peaks of maps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

OVERLAP = 0.7
"""A box whose corners are off by at most `gaussian_radius` still has this IoU with the true one."""


def present(target: Tensor) -> Tensor:
    """Returns which rows are not empty: bool (..., most); False where they are NaN."""
    return (target[..., 2] > target[..., 0]) & (target[..., 3] > target[..., 1])


def cells(points: Tensor, stride: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns the cells (..., 2), int64, of points in pixels (..., 2), and the points' offsets in them, in cells."""
    place = points / stride
    last = torch.tensor([size[1] - 1, size[0] - 1], device=points.device)
    cell = place.floor().long().clamp(min=torch.zeros_like(last), max=last)
    return cell, place - cell


def at(grid: Tensor, cell: Tensor) -> Tensor:
    """Returns the values (B, N, C) of a grid (B, C, h, w) at cells (B, N, 2)."""
    index = cell[..., 1] * grid.shape[3] + cell[..., 0]
    flat = grid.flatten(2)
    return flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2)


def gaussian_radius(width: Tensor, height: Tensor, overlap: float = OVERLAP) -> Tensor:
    """Returns by how much both corners of a box may be off, in either direction, without its IoU falling below a bound.

    The smallest of three solutions: both corners shifted alike; both inside the box; both outside. The released code of
    CenterNet takes the wrong root of the first two and does not divide by twice the leading coefficient.

    Args:
        width: Of the boxes, >= 0.
        height: Of the boxes, >= 0.
        overlap: Lowest IoU, 0 to 1.
    """
    total, area, o = width + height, width * height, overlap
    shifted = (total - (total**2 - 4 * area * (1 - o) / (1 + o)).clamp(min=0).sqrt()) / 2
    inside = (total - (total**2 - 4 * (1 - o) * area).clamp(min=0).sqrt()) / 4
    outside = (-o * total + ((o * total) ** 2 + 4 * o * (1 - o) * area).sqrt()) / (4 * o)
    return torch.minimum(torch.minimum(shifted, inside), outside)


def splat(cell: Tensor, radius: Tensor, shown: Tensor, layer: Tensor, layers: int, size: tuple[int, int]) -> Tensor:
    """Returns maps (B, layers, h, w) of Gaussians: 1 at a cell, 0 beyond its radius; the maximum where several overlap.

    Args:
        cell: (B, N, 2) column and row.
        radius: (B, N) in whole cells; the standard deviation is (2 radius + 1) / 6.
        shown: (B, N) bool: the others leave no trace.
        layer: (B, N) map on which it lies.
        layers: Number of maps.
        size: (h, w).
    """
    x, y = (torch.arange(n, device=cell.device) for n in reversed(size))
    across, down = x - cell[..., :1], y - cell[..., 1:]
    reach = radius[..., None]
    spread = 2 * ((2 * reach + 1) / 6) ** 2
    rows, columns = (
        torch.where((d.abs() <= reach) & shown[..., None], torch.exp(-(d**2) / spread), 0.0) for d in (down, across)
    )
    bumps = rows[..., :, None] * columns[..., None, :]
    maps = bumps.new_zeros(len(cell), layers, *size)
    return maps.scatter_reduce(1, layer[..., None, None].expand_as(bumps), bumps, "amax")


def focal(raw: Tensor, heat: Tensor) -> Tensor:
    """Returns the penalty-reduced focal loss of every element.

    −(1 − p)² ln p where the heat is 1, else −(1 − heat)⁴ p² ln(1 − p), with p = σ(raw).
    """
    p = raw.sigmoid()
    miss, false = -((1 - p) ** 2) * F.logsigmoid(raw), -((1 - heat) ** 4) * p**2 * F.logsigmoid(-raw)
    return torch.where(heat == 1, miss, false)


class Peaks(NamedTuple):
    """The highest peaks of maps, highest first; of equal ones, the first in order of map, row and column.

    Attributes:
        score: (B, K) heat; 0 where there are fewer than K.
        layer: (B, K) map.
        cell: (B, K, 2) column and row.
    """

    score: Tensor
    layer: Tensor
    cell: Tensor


def peaks(heat: Tensor, count: int) -> Peaks:
    """Finds the cells of maps (B, L, h, w), >= 0, that are as high as every neighbour in a 3 x 3 window."""
    _, layers, height, width = heat.shape
    kept = torch.where(heat == F.max_pool2d(heat, 3, 1, 1), heat, 0.0).flatten(1)
    if short := max(0, count - layers * height * width):
        kept = F.pad(kept, (0, short))
    # Stable, so that ties are broken alike on every device and rank.
    score, place = (x[:, :count] for x in kept.sort(dim=1, descending=True, stable=True))
    place = place.clamp(max=layers * height * width - 1)
    layer, inner = place // (height * width), place % (height * width)
    return Peaks(score, layer, torch.stack([inner % width, inner // width], -1))
