"""CPU seconds to score the edges of one 512 x 512 image at 99 thresholds, compared with one matching per threshold.

    OMP_NUM_THREADS=1 python -m benchmarks.edges [--size 512] [--sample 5]
    OMP_NUM_THREADS=1 python -m benchmarks.edges --size 128 --assignment

The reference solves the matching of each threshold separately on the same thinned maps and is timed at ``--sample`` of
the 99 thresholds. It uses scipy's Hopcroft-Karp or, with ``--assignment``, the least-distance assignment of BSDS. The
benchmark fails if the results differ.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_bipartite_matching, min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from mtlbench.metrics.boundary import f_measure, image_counts, thin_truth
from mtlbench.metrics.thinning import SMOOTHING, suppress, thin

THRESHOLDS = np.arange(1, 100) / 100


def borders(size: int, regions: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the borders of crooked regions: bool (H, W)."""
    bend = np.stack([ndimage.gaussian_filter(rng.normal(size=(size, size)), 4).ravel() for _ in range(2)], 1)
    places = np.mgrid[:size, :size].reshape(2, -1).T + 60 * bend
    region = cKDTree(rng.uniform(0, size, (regions, 2))).query(places)[1].reshape(size, size)
    edge = np.zeros((size, size), bool)
    edge[:, :-1] |= region[:, :-1] != region[:, 1:]
    edge[:-1] |= region[:-1] != region[1:]
    return edge


def predictions(edge: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns probability maps like those of a trained and of an untrained network, and the ground truth."""
    soft = ndimage.gaussian_filter(edge.astype(float), 1.5)
    trained = 8 * soft / soft.max() - 5 + 3 * ndimage.gaussian_filter(rng.normal(size=edge.shape), 1.5)
    return {
        "trained": 1 / (1 + np.exp(-trained)),
        "noise": 1 / (1 + np.exp(-rng.normal(size=edge.shape))),
        "perfect": edge.astype(float),
    }


def assignment(predicted: np.ndarray, truth: np.ndarray, reach: float) -> int:
    """Returns the number of pairs of a least-distance assignment; leaving two pixels unmatched costs 200 x reach."""
    p, t = len(predicted), len(truth)
    near = cKDTree(predicted).sparse_distance_matrix(cKDTree(truth), reach, output_type="coo_matrix")
    outlier = 100 * reach
    # Every pixel has a dummy partner, so that it may stay unmatched. Dummy partners may pair freely.
    row = np.concatenate([near.row, np.arange(p), p + np.arange(t), p + near.col])
    column = np.concatenate([near.col, t + np.arange(p), np.arange(t), t + near.row])
    cost = np.concatenate([near.data + 1e-9, np.full(p + t, outlier), np.full(len(near.row), 1e-9)])
    rows, columns = min_weight_full_bipartite_matching(coo_array((cost, (row, column)), shape=(p + t, p + t)).tocsr())
    return int(((rows < p) & (columns < t)).sum())


def hopcroft_karp(predicted: np.ndarray, truth: np.ndarray, reach: float) -> int:
    """Returns the number of pairs of a maximum matching."""
    near = cKDTree(predicted).sparse_distance_matrix(cKDTree(truth), reach, output_type="coo_matrix")
    graph = coo_array((np.ones(len(near.row), bool), (near.row, near.col)), shape=near.shape).tocsr()
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def timed(call, *arguments):
    start = time.process_time()
    return call(*arguments), time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--sample", type=int, default=5)
    parser.add_argument("--assignment", action="store_true")
    options = parser.parse_args()
    reference = assignment if options.assignment else hopcroft_karp
    rng = np.random.default_rng(0)
    edge = borders(options.size, options.size // 8, rng)
    truth = np.argwhere(thin_truth(edge))
    every = predictions(edge, rng)
    print(f"{options.size} x {options.size}, {len(truth)} true pixels, 99 thresholds")
    for name, share in (("pascal", 0.0075), ("nyud", 0.011)):
        reach = share * options.size * np.sqrt(2)
        for kind, probability in every.items():
            counts, ours = min(
                (timed(image_counts, probability, edge[None] * 1, THRESHOLDS, share) for _ in range(3)),
                key=lambda pair: pair[1],
            )
            level = np.searchsorted(THRESHOLDS, probability, side="right")
            mask = thin(suppress(probability, 0.01), level, ndimage.gaussian_filter(probability, SMOOTHING))
            total = 0.0
            for k in np.linspace(0, 98, options.sample).astype(int):
                predicted = np.argwhere(mask & (level > k))
                found, seconds = timed(reference, predicted, truth, reach) if len(predicted) else (0, 0.0)
                total += seconds
                if found != counts[0, k]:
                    raise SystemExit(
                        f"{name}, {kind}, threshold {k}: {counts[0, k]} matches, the reference has {found}"
                    )
            slow = total * 99 / options.sample
            print(
                f"{name:7} {kind:8} odsF {f_measure(counts).max():.4f}  {ours:.3f} s   reference {slow:8.1f} s   "
                f"{slow / ours:6.0f} x"
            )


if __name__ == "__main__":
    main()
