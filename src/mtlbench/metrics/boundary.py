"""Scores the boundaries of one image at many thresholds. Does not import torch, so worker processes start fast."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mtlbench.metrics.matching import matched_in_order
from mtlbench.metrics.thinning import SMOOTHING, Floats, Mask, suppress, thin

Counts = NDArray[np.int64]
"""(4, K) per threshold: predicted pixels that match, predicted pixels, true pixels that match, true pixels."""


def image_counts(probability: Floats, truths: NDArray[np.number], thresholds: Floats, max_distance: float) -> Counts:
    """Counts predicted, true and matched boundary pixels of one image at every threshold.

    Args:
        probability: (H, W) in [0, 1].
        truths: (A, H, W) of A annotators: 1 = edge, 0 = none, 255 = not labelled.
        thresholds: (K,) ascending, > 0.
        max_distance: Largest distance of a match, as a share of the image's diagonal.
    """
    labelled = truths != 255
    edges = [thin_truth(layer == 1) for layer in truths]
    probability = np.where(labelled.any(0), probability, 0.0)
    level = np.searchsorted(thresholds, probability, side="right")
    mask = thin(suppress(probability, thresholds[0]), level, ndimage.gaussian_filter(probability, SMOOTHING))
    pixels = np.argwhere(mask)
    strength = level[mask]
    order = np.argsort(-strength, kind="stable")
    pixels, strength = pixels[order], strength[order]
    reach = max_distance * float(np.hypot(*probability.shape))

    def reached(chosen: NDArray[np.bool_]) -> Counts:
        """Returns, per threshold, how many chosen pixels are predicted."""
        return np.bincount(strength[chosen], minlength=len(thresholds) + 1)[::-1].cumsum()[-2::-1]

    matched = [matched_in_order(pixels, layer[None], reach) for layer in edges]
    # A pixel counts once even if several annotators agree, so it is matched with all their edges together.
    either = matched[0] if len(edges) == 1 else matched_in_order(pixels, np.stack(edges), reach)
    total = sum(int(layer.sum()) for layer in edges)
    every = np.ones(len(pixels), bool)
    return np.stack([reached(either), reached(every), sum(map(reached, matched)), np.full(len(thresholds), total)])


def thin_truth(edges: Mask) -> Mask:
    """Thins true edges to one pixel, exactly as a prediction equal to them is thinned."""
    height = ndimage.gaussian_filter(edges.astype(np.float64), SMOOTHING)
    return thin(edges, edges.astype(np.int64), height)


def f_measure(counts: NDArray[np.number]) -> Floats:
    """Returns F of (4, ...) counts; 0 where nothing matches."""
    precision, recall = precision_recall(counts)
    return 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)


def precision_recall(counts: NDArray[np.number]) -> tuple[Floats, Floats]:
    """Returns precision and recall of (4, ...) counts; 0 where they are not defined."""
    return counts[0] / np.maximum(counts[1], 1), counts[2] / np.maximum(counts[3], 1)


def average_precision(counts: NDArray[np.number]) -> float:
    """Returns the mean precision at recalls 0, 0.01, ..., 1 of (4, K) counts.

    Linear between the recalls that the thresholds reach; beyond the highest 0, below the lowest as at the lowest.
    Thresholds at which nothing is predicted have no precision and are left out.
    """
    counts = counts[:, counts[1] > 0]
    if not counts.size:
        return 0.0
    precision, recall = precision_recall(counts)
    order = np.lexsort((precision, recall))
    last = np.append(np.diff(recall[order]) > 0, True)  # of equal recalls, the highest precision
    return float(np.interp(np.linspace(0, 1, 101), recall[order][last], precision[order][last], right=0).mean())
