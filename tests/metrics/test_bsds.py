"""The official boundary procedure: thinning and matching against independent ones, several annotators by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from mtlbench.metrics import EdgeBSDS, EdgeODSF
from mtlbench.metrics.bsds import (
    OUTLIER,
    assigned,
    best_f,
    official_average_precision,
    official_counts,
    thin_in_parallel,
)

SHAPE = """
................
.#######........
.#########......
.##########.....
..#########.....
...#######...##.
....#####...###.
.....###..####..
..########......
...######.......
...###.###......
...##...##......
................
"""
THINNED = """
................
................
................
..##............
....####........
......#.........
......#......#..
......#...###...
..#..#.###......
...##..#........
....#...#.......
...#....#.......
................
"""
"""Computed with ``skimage.morphology.thin`` 0.26.0, which follows the same algorithm."""


def drawn(text: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in line] for line in text.split()])


def test_thinning_equals_another_implementation() -> None:
    np.testing.assert_array_equal(thin_in_parallel(drawn(SHAPE)), drawn(THINNED))


@pytest.mark.parametrize("seed", range(30))
def test_matching_costs_no_more_than_a_dense_assignment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels, truths = (np.argwhere(rng.random((12, 15)) < share) for share in rng.uniform(0, 0.4, 2))
    reach = rng.choice([0.5, 1.0, 1.5, 3.0])
    distance = np.linalg.norm(pixels[:, None] - truths[None], axis=-1)
    alone = np.full((len(pixels), len(pixels)), OUTLIER * reach)
    cost = np.hstack([np.where(distance <= reach, distance, 1e9), alone])
    rows, columns = linear_sum_assignment(cost)
    assert assigned(pixels, truths, reach).sum() == (columns[np.argsort(rows)] < len(truths)).sum()


def test_a_pixel_is_right_if_any_annotator_agrees_and_recall_counts_each() -> None:
    probability, truths = np.zeros((30, 40)), np.zeros((2, 30, 40))
    probability[5:25, 10] = probability[5:25, 30] = 0.9
    truths[0, 5:25, 10] = truths[1, 5:25, 11] = truths[1, 5:25, 20] = 1
    counts = official_counts(probability, truths, np.array([0.5]), 0.03)
    # 40 pixels, of which the left line is right by both annotators; 60 true pixels, of which 20 + 20 are found.
    assert counts[:, 0].tolist() == [20, 40, 40, 60]


def test_a_threshold_above_all_predicts_nothing_and_equal_maps_score_one() -> None:
    truth = torch.zeros(1, 1, 24, 32)
    truth[0, 0, 4:20, 16] = 1
    metric = EdgeBSDS(max_distance=0.02, thresholds=9)
    metric.update(torch.where(truth == 1, 2.0, -9.0), truth)
    ods, ois, _ = metric.compute().values()
    assert (ods, ois) == pytest.approx((1.0, 1.0))
    assert list(metric.compute()) == [f"edge_{kind}_bsds_0.02_t9@1" for kind in ("odsf", "oisf", "ap")]


def test_with_one_annotator_and_thin_lines_both_protocols_agree() -> None:
    rng, truth = np.random.default_rng(0), torch.zeros(1, 1, 48, 64)
    for row in (8, 20, 32, 44):
        truth[0, 0, row, 5:60] = 1
    noise = torch.as_tensor(rng.normal(0, 0.8, (1, 1, 48, 64)), dtype=torch.float32)
    logits = torch.where(truth == 1, 1.0, -6.0) + noise
    values = []
    for cls in (EdgeODSF, EdgeBSDS):
        metric = cls(max_distance=0.02, thresholds=19)
        metric.update(logits, truth)
        values.append(list(metric.compute().values())[0])
    assert values[0] == pytest.approx(values[1], abs=0.02)


def test_f_between_two_thresholds_is_that_of_interpolated_precision_and_recall() -> None:
    counts = np.array([[10, 4], [20, 4], [10, 4], [10, 10]])  # precision .5, 1; recall 1, .4
    along = np.linspace(0, 1, 100)
    p, r = 0.5 + 0.5 * along, 1 - 0.6 * along
    assert best_f(counts) == pytest.approx((2 * p * r / (p + r)).max()) and best_f(counts) > 2 / 3


def test_average_precision_is_nought_outside_the_recalls_that_are_reached() -> None:
    counts = np.array([[5, 3], [10, 3], [5, 3], [10, 10]])  # precision .5 at recall .5, 1 at .3
    expected = sum(1 - 0.5 * (recall - 0.3) / 0.2 for recall in np.arange(30, 51) / 100) * 0.01
    assert official_average_precision(counts) == pytest.approx(expected, abs=2e-2)
