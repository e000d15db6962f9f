"""The probability simplex, the set of weights that are non-negative and sum to 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def project(point: np.ndarray) -> np.ndarray:
    """Returns the nearest point of the simplex {w ≥ 0, Σ w = 1}.

    Args:
        point: (A,), finite.

    Example:
        >>> project(np.array([0.5, 0.45])).round(3).tolist()
        [0.525, 0.475]
    """
    # The projection ignores a shift along (1, …, 1); without it, large values would lose the digits that count.
    shifted = point - point.max()
    ordered = np.sort(shifted)[::-1]
    thresholds = (ordered.cumsum() - 1) / np.arange(1, len(point) + 1)
    return np.maximum(shifted - thresholds[ordered > thresholds][-1], 0)


def read_share(weights: Tensor, active: Sequence[int]) -> np.ndarray:
    """Returns the weights of the active tasks as float64 (A,), scaled to sum to 1; equal where all of them are 0.

    Args:
        weights: (T,) on the simplex.
        active: Indices of A tasks.
    """
    share = weights[list(active)].double().cpu().numpy()
    return share / share.sum() if share.sum() > 0 else np.full(len(share), 1 / len(share))


def write_share(weights: Tensor, active: Sequence[int], share: np.ndarray) -> None:
    """Redistributes the total weight of the active tasks among them, in place. Absent tasks keep their weights.

    Args:
        weights: (T,) on the simplex, before and after the call.
        active: Indices of the A active tasks.
        share: (A,) on the simplex.
    """
    held = weights[list(active)].sum()
    weights[list(active)] = held * torch.from_numpy(share).to(weights)
