"""The probability simplex, where the weights of rules with one budget for all tasks live."""

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
    """Redistributes the weight that the active tasks hold of (T,), in place; absent tasks keep theirs.

    Args:
        weights: (T,) on the simplex; stays there.
        active: Indices of A tasks.
        share: (A,) on the simplex.
    """
    held = weights[list(active)].sum()
    weights[list(active)] = held * torch.from_numpy(share).to(weights)
