"""Boundaries by the official procedure of BSDS500: per annotator, thinned at every threshold. Free of torch.

What the benchmark scripts of Arbeláez et al. (2011) do, step by step, so that scores on data with several annotators
compare with published ones. `EdgeODSF` is faster and, with one annotator, agrees to less than .1 %.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from mtlbench.metrics.boundary import Counts, f_measure, precision_recall
from mtlbench.metrics.thinning import Floats, Mask

OUTLIER = 100.0
"""Cost of an unmatched pixel, as a multiple of the largest distance."""

BETWEEN = 100
"""Steps between two thresholds at which F is interpolated."""

_AROUND = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
"""The neighbours x1 .. x8 of Guo and Hall (row, column): east first, counter-clockwise."""


def official_counts(probability: Floats, truths: NDArray[np.number], thresholds: Floats, max_distance: float) -> Counts:
    """Returns the counts of one image, matched with each annotator by itself.

    A predicted pixel is right if the matching with any annotator takes it.

    Args:
        probability: (H, W) in [0, 1]; pixels without a label are 0.
        truths: (A, H, W) of A annotators: 1 = edge, 0 = none, 255 = not labelled. Not thinned.
        thresholds: (K,) ascending, > 0.
        max_distance: Largest distance of a match, as a share of the image's diagonal.
    """
    reach = max_distance * float(np.hypot(*probability.shape))
    edges = [np.argwhere(layer == 1) for layer in truths]
    total = sum(map(len, edges))
    found = np.zeros((4, len(thresholds)), np.int64)
    found[3] = total
    previous, mask = -1, np.zeros(probability.shape, bool)
    for k, threshold in enumerate(thresholds):
        above = probability >= threshold
        if above.sum() == previous:  # The same pixels as one threshold lower.
            found[:3, k] = found[:3, k - 1]
            continue
        previous, mask = int(above.sum()), thin_in_parallel(above)
        pixels = np.argwhere(mask)
        right = np.zeros(len(pixels), bool)
        for edge in edges:
            hit = assigned(pixels, edge, reach)
            right |= hit
            found[2, k] += hit.sum()
        found[0, k], found[1, k] = right.sum(), len(pixels)
    return found


def assigned(pixels: NDArray[np.int64], truths: NDArray[np.int64], reach: float) -> Mask:
    """Returns which pixels (N, 2) are matched one to one with truths (M, 2) at the least total cost: bool (N,).

    A pair costs its distance, at most ``reach``; a pixel that stays alone costs `OUTLIER` times ``reach``.
    """
    n, m = len(pixels), len(truths)
    if not n or not m:
        return np.zeros(n, bool)
    near = cKDTree(pixels).sparse_distance_matrix(cKDTree(truths), reach, output_type="coo_matrix")
    alone = np.arange(n)
    rows, columns = np.concatenate([near.row, alone]), np.concatenate([near.col, m + alone])
    # Explicit zeros would not be edges, so every cost is one higher: each pixel has exactly one partner.
    costs = np.concatenate([near.data, np.full(n, OUTLIER * reach)]) + 1
    graph = sparse.coo_array((costs, (rows, columns)), shape=(n, m + n)).tocsr()
    chosen, partner = min_weight_full_bipartite_matching(graph)
    hit = np.zeros(n, bool)
    hit[chosen] = partner < m
    return hit


def thin_in_parallel(mask: Mask) -> Mask:
    """Returns the mask thinned until nothing changes (Guo and Hall, 1989, algorithm A1), as ``bwmorph(.., 'thin')``.

    All superfluous pixels of a half-step leave at once. `thinning.thin` removes them one by one, the weakest first.
    """
    mask = np.pad(mask, 1)
    while True:
        before = mask.sum()
        for first in (True, False):
            x = [np.roll(mask, (-dy, -dx), (0, 1)) for dy, dx in _AROUND]
            crossings = sum((~x[i] & (x[i + 1] | x[(i + 2) % 8])).astype(np.int8) for i in range(0, 8, 2))
            n1 = sum((x[i] | x[i + 1]).astype(np.int8) for i in range(0, 8, 2))
            n2 = sum((x[i + 1] | x[(i + 2) % 8]).astype(np.int8) for i in range(0, 8, 2))
            fewest = np.minimum(n1, n2)
            side = (x[1] | x[2] | ~x[7]) & x[0] if first else (x[5] | x[6] | ~x[3]) & x[4]
            mask = mask & ~((crossings == 1) & (fewest >= 2) & (fewest <= 3) & ~side)
        if mask.sum() == before:
            return mask[1:-1, 1:-1]


def best_f(counts: NDArray[np.number]) -> float:
    """Returns the largest F of (4, K) counts, precision and recall interpolated between thresholds."""
    precision, recall = precision_recall(counts)
    along = np.linspace(0, 1, BETWEEN)[:, None]
    p = precision[:-1] * (1 - along) + precision[1:] * along
    r = recall[:-1] * (1 - along) + recall[1:] * along
    between = 2 * p * r / np.maximum(p + r, np.finfo(np.float64).tiny)
    return float(max(between.max(initial=0.0), f_measure(counts).max(initial=0.0)))


def official_average_precision(counts: NDArray[np.number]) -> float:
    """Returns the area under precision over recalls 0, 0.01, ..., 1; 0 outside the recalls that thresholds reach.

    Of equal recalls the precision of the lowest threshold counts, as in the scripts' ``unique``.
    """
    precision, recall = precision_recall(counts)
    reached, first = np.unique(recall, return_index=True)
    if len(reached) < 2:
        return 0.0
    return float(np.interp(np.linspace(0, 1, 101), reached, precision[first], left=0, right=0).sum() * 0.01)
