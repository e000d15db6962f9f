"""Boundaries: equal to a slow reference, to geometry, and to themselves on two ranks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import distributed

from mtlbench.metrics import EdgeODSF, edge_protocols
from mtlbench.metrics.boundary import average_precision, f_measure, image_counts
from mtlbench.metrics.matching import matched_in_order
from mtlbench.metrics.thinning import suppress, thin
from mtlbench.tasks import Edges
from tests.support.edges_reference import counts as slow_counts
from tests.support.edges_reference import scores as slow_scores

ODS, OIS, AP = edge_protocols()


def logit(probability):
    p = torch.as_tensor(np.asarray(probability), dtype=torch.float64)
    return torch.log(p / (1 - p))


def score(probability, truth, **options):
    """Returns the values of (B, H, W) probabilities and truths by the first part of their names."""
    metric = EdgeODSF(**options)
    truth = torch.as_tensor(np.asarray(truth), dtype=torch.float64)
    metric.update(logit(probability)[:, None], truth if truth.ndim == 4 else truth[:, None])
    return {name.split("_")[1]: value for name, value in metric.compute().items()}


def drawing(rng, height, width, lines=3):
    """Returns crooked lines, some thick, and a blob: bool (H, W)."""
    image = np.zeros((height, width), bool)
    for _ in range(lines):
        (y, x), angle = rng.uniform(0, 1, 2) * (height, width), rng.uniform(0, 2 * np.pi)
        for _ in range(rng.integers(5, 40)):
            angle += rng.normal(0, 0.3)
            y, x = y + np.sin(angle), x + np.cos(angle)
            if 0 <= y < height - 1 and 0 <= x < width - 1:
                image[int(y) : int(y) + rng.integers(1, 3), int(x)] = True
    return image


def random_case(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(9, 26), rng.integers(9, 30)
    truth = np.stack([drawing(rng, height, width) for _ in range(1 + seed % 3)]).astype(float)
    soft = ndimage.gaussian_filter(truth[0] + rng.normal(0, (0, 0.2, 0.6)[seed % 3], truth[0].shape), rng.uniform(0, 1))
    probability = 1 / (1 + np.exp(-(8 * soft - rng.uniform(1, 4))))
    if seed % 4 == 0:
        truth[:, : height // 3] = 255
    if seed % 5 == 0:
        probability = np.round(probability, 1)  # plateaus and ties
    return probability, truth, rng.choice([0.0075, 0.03, 0.05, 0.11])


def hand_made():
    """Yields (probability, truth, largest distance) that are easily got wrong."""
    empty, full = np.zeros((12, 17)), np.ones((12, 17))
    line, cross, thick = empty.copy(), empty.copy(), empty.copy()
    line[:, 8], cross[6], cross[:, 8], thick[3:9, 4:12] = 1, 1, 1, 1
    stairs = np.eye(12, 17) + np.eye(12, 17, 1)
    checks = np.indices((12, 17)).sum(0) % 2 * 1.0
    comb = (np.arange(17) % 3 == 0) * np.ones((12, 1))
    ramp = np.linspace(0, 1, 17) * np.ones((12, 1))
    for truth, probability in itertools.product((line, cross, thick, stairs, comb), (empty, full, checks, 0.9 * ramp)):
        yield probability, truth[None], 0.08
    yield line, empty[None], 0.05
    yield full, 255 * full[None], 0.05
    yield np.roll(line, 2, 1), np.stack([line, np.roll(line, 4, 1), 255 * full]), 0.1
    yield line * 0.5, np.stack([line, line]), 0.05  # exactly on a threshold


CASES = [*map(random_case, range(45)), *hand_made()]


@pytest.mark.parametrize("block", range(6))
def test_equals_the_slow_reference(block):
    assert len(CASES) >= 50
    for i, (probability, truth, reach) in enumerate(CASES[block::6]):
        thresholds = np.arange(1, 100) / 100 if i % 6 == 0 else np.arange(1, 10) / 10
        fast, slow = (f(probability, truth, thresholds, reach) for f in (image_counts, slow_counts))
        np.testing.assert_array_equal(fast, slow)


def test_scores_of_a_set_equal_the_slow_reference():
    metric, every, thresholds = EdgeODSF(max_distance=0.05, thresholds=19), [], np.arange(1, 20) / 20
    for seed in (1, 2, 4, 7, 11):
        probability, truth, _ = random_case(seed)
        metric.update(logit(np.clip(probability, 1e-9, 1 - 1e-9))[None, None], torch.as_tensor(truth)[None])
        every.append(slow_counts(np.clip(probability, 1e-9, 1 - 1e-9), truth, thresholds, 0.05))
    values = list(metric.compute().values())
    assert values[:2] == pytest.approx(slow_scores(every), abs=1e-12)
    assert 0 < values[0] < values[1] < 1


def brute_union(near, annotator):
    """Returns the most pixels matched by one maximum matching for each annotator, of all there are."""
    best = [{frozenset()}]
    for layer in sorted(set(annotator)):
        truths = [t for t, a in enumerate(annotator) if a == layer]
        options = [[None, *(p for p in range(len(near)) if t in near[p])] for t in truths]
        chosen = [[p for p in pick if p is not None] for pick in itertools.product(*options)]
        sets = {frozenset(pick) for pick in chosen if len(set(pick)) == len(pick)}
        size = max(map(len, sets))
        best.append({s for s in sets if len(s) == size})
    return max(len(frozenset().union(*pick)) for pick in itertools.product(*best))


def test_pixels_right_with_any_annotator_are_the_most_that_maximum_matchings_give():
    rng = np.random.default_rng(3)
    for _ in range(25):
        pixels = np.argwhere(rng.random((3, 4)) < 0.5)
        truths = rng.random((2, 3, 4)) < 0.35
        where = np.argwhere(truths)
        near = [{i for i, (_, y, x) in enumerate(where) if (y - a) ** 2 + (x - b) ** 2 <= 2} for a, b in pixels]
        assert matched_in_order(pixels, truths, 1.5).sum() == brute_union(near, where[:, 0].tolist())


# ---- geometry -------------------------------------------------------------------------------------------------------


def line(column, height=30, width=40, rows=slice(None)):
    image = np.zeros((1, height, width))
    image[0, rows, column] = 1
    return image


def bright(image, value=0.9):
    return np.clip(image * value, 0.001, None)


def test_a_perfect_prediction_scores_one():
    rng = np.random.default_rng(0)
    for size in ((31, 47), (64, 64)):
        truth = np.stack([drawing(rng, *size, lines=6) for _ in range(3)]).astype(float)
        found = score(np.clip(truth, 1e-12, 1 - 1e-12), truth)
        assert found == {"odsf": 1, "oisf": 1, "ap": 1}


@pytest.mark.parametrize(("diagonal_share", "shift"), [(0.0075, 0), (0.0199, 0), (0.0201, 1), (0.0599, 2), (0.0601, 3)])
def test_a_shifted_line_scores_as_far_as_the_distance_reaches(diagonal_share, shift):
    # The diagonal of 30 x 40 is 50 pixels: 0.02 is one pixel.
    for moved in range(6):
        found = score(bright(line(20 + moved)), line(20), max_distance=diagonal_share)
        assert found["odsf"] == (1 if moved <= shift else 0), moved


def test_distance_is_euclidean_and_of_the_diagonal():
    spot = np.zeros((1, 30, 40))
    spot[0, 10, 10] = 1
    moved = np.roll(spot, (3, 4), (1, 2))  # 5 pixels away, a tenth of the diagonal
    assert score(bright(moved), spot, max_distance=0.1)["odsf"] == 1
    assert score(bright(moved), spot, max_distance=0.0999)["odsf"] == 0


def test_half_a_line_has_half_the_recall_and_two_lines_half_the_precision():
    assert score(bright(line(20, rows=slice(15))), line(20))["odsf"] == pytest.approx(2 / 3)
    # One to one: two lines near one true line cannot both be right.
    both = bright(line(18) + line(22))
    assert score(both, line(20), max_distance=0.05)["odsf"] == pytest.approx(2 / 3)
    # Two annotators who drew one line each: both predictions are right, each annotator finds one.
    truth = np.stack([line(18)[0], line(22)[0]])[None]
    assert score(both, truth, max_distance=0.0075)["odsf"] == pytest.approx(1)


def test_threshold_of_the_set_and_of_the_image():
    # First image: the line at 0.3 is right. Second: the line at 0.3 is wrong, that at 0.7 right.
    first, second = bright(line(20), 0.3), np.maximum(bright(line(10), 0.7), bright(line(30), 0.3))
    found = score(np.concatenate([first, second]), np.concatenate([line(20), line(10)]))
    assert found["odsf"] == pytest.approx(max(2 * (2 / 3) / (1 + 2 / 3), 2 * 0.5 / 1.5))
    assert found["oisf"] == 1
    # Precision 1 up to recall 1/2, then linear to 2/3 at recall 1.
    recall = np.linspace(0, 1, 101)
    wanted = np.where(recall <= 0.5, 1, 1 - (recall - 0.5) / 0.5 / 3)
    assert found["ap"] == pytest.approx(wanted.mean())


def test_counts_are_pooled_and_not_averaged():
    truth = np.concatenate([line(20), line(20, rows=slice(5))])
    found = score(bright(np.concatenate([line(20), line(5, rows=slice(5))])), truth)
    assert found["odsf"] == pytest.approx(30 / 35)  # not the mean of 1 and 0


def test_ignored_pixels_neither_help_nor_harm():
    truth = line(20)
    truth[:, :, 28:] = 255
    assert score(bright(line(20) + line(33)), truth)["odsf"] == 1
    blank = np.full_like(truth, 255)
    assert score(bright(np.concatenate([line(20), line(3)])), np.concatenate([line(20), blank]))["odsf"] == 1
    assert math.isnan(score(bright(line(20)), blank)["odsf"])


def test_without_an_edge_in_truth_there_is_no_score_and_without_one_predicted_it_is_nought():
    assert all(map(math.isnan, score(bright(line(20)), 0 * line(20)).values()))
    assert set(score(np.full((1, 30, 40), 0.001), line(20)).values()) == {0}


def test_nan_predictions_leave_no_score_unless_ignored():
    truth, prediction = line(20), bright(line(20))
    truth[0, 3, 3] = 255
    prediction[0, 3, 3] = math.nan
    assert score(prediction, truth)["odsf"] == 1
    prediction[0, 4, 4] = math.nan
    assert all(map(math.isnan, score(prediction, truth).values()))


# ---- parts ----------------------------------------------------------------------------------------------------------


def test_suppression_keeps_the_crest_of_a_slanted_ridge():
    y, x = np.mgrid[:40, :50]
    for angle in np.linspace(0, np.pi, 13):
        away = (y - 20) * np.cos(angle) + (x - 25) * np.sin(angle)
        kept = suppress(0.9 * np.exp(-(away**2) / 8), 0.01)
        inner = kept & (abs(y - 20) < 15) & (abs(x - 25) < 18)
        assert np.abs(away[inner]).max() <= 0.8 and inner.sum() >= 28, angle


def test_thinning_keeps_parts_ends_and_the_strongest():
    rng = np.random.default_rng(5)
    for _ in range(20):
        mask = drawing(rng, 30, 40, lines=4)
        level = rng.integers(1, 9, mask.shape)
        once = thin(mask, level, np.zeros(mask.shape))
        assert not (once & ~mask).any()
        parts, count = ndimage.label(mask, np.ones((3, 3)))
        assert ndimage.label(once, np.ones((3, 3)))[1] == count == len(np.unique(parts[once]))
        np.testing.assert_array_equal(thin(once, level, np.zeros(mask.shape)), once)
    bar = np.zeros((9, 20), bool)
    bar[3:5] = True
    strong = np.where(np.arange(9)[:, None] == 4, 2, 1) * np.ones((1, 20), int)
    assert thin(bar, strong, np.zeros(bar.shape))[4, :-1].all()
    diagonal = np.eye(9, 20, dtype=bool)
    np.testing.assert_array_equal(thin(diagonal, diagonal * 1, np.zeros(bar.shape)), diagonal)
    middle_last = -abs(np.arange(7) - 3.0)[:, None] * np.ones((1, 30))
    assert thin(np.ones((7, 30), bool), np.ones((7, 30), int), middle_last)[3, 3:-3].all()


def test_average_precision_by_hand():
    counts = np.array([[4, 2, 0], [8, 2, 0], [4, 2, 0], [5, 5, 5]])
    # (recall, precision): (0.8, 0.5), (0.4, 1), and nothing predicted.
    recall = np.linspace(0, 1, 101)
    wanted = np.interp(recall, [0.4, 0.8], [1, 0.5])
    assert average_precision(counts) == pytest.approx(np.where(recall <= 0.8, wanted, 0).mean())
    np.testing.assert_allclose(f_measure(counts), [8 / 13, 4 / 7, 0])


# ---- ranks, processes, task -----------------------------------------------------------------------------------------


def batch():
    rng = np.random.default_rng(8)
    truth = np.stack([drawing(rng, 24, 33) for _ in range(7)]).astype(np.float32)
    truth[2], truth[4, :9] = 255, 255
    noisy = ndimage.gaussian_filter(truth % 255 + rng.normal(0, 0.5, truth.shape), (0, 0.7, 0.7))
    return torch.from_numpy(6 * noisy - 2)[:, None], torch.from_numpy(truth)[:, None]


def _on_a_rank():
    prediction, target = batch()
    share = slice(0, 2) if distributed.get_rank() == 0 else slice(2, 7)
    metric = EdgeODSF(max_distance=0.03)
    metric.update(prediction[share], target[share])
    return metric.compute()


def test_two_ranks_equal_one_process(pool):
    metric = EdgeODSF(max_distance=0.03)
    prediction, target = batch()
    for part in (slice(0, 3), slice(3, 7)):
        metric.update(prediction[part], target[part])
    alone = metric.compute()
    assert 0 < alone["edge_odsf_0.03@1"] < 1
    assert pool.call(_on_a_rank) == [alone, alone]


def test_processes_share_the_images():
    prediction, target = batch()
    metrics = [EdgeODSF(max_distance=0.03, workers=workers) for workers in (0, 1)]
    for metric in metrics:
        metric.update(prediction, target)
    assert metrics[0].compute() == metrics[1].compute()


def test_the_protocol_names_what_differs():
    assert edge_protocols() == ("edge_odsf_pascal@1", "edge_oisf_pascal@1", "edge_ap_pascal@1")
    assert edge_protocols(0.011)[0] == "edge_odsf_nyud@1"
    assert edge_protocols(0.011, 33)[0] == "edge_odsf_nyud_t33@1"


def test_the_task_reports_odsf_first_and_watches_the_loss():
    task = Edges("edges", max_distance=0.03)
    assert [p.id for p in task.protocols][::3] == ["edge_odsf_0.03@1", "edge_loss@1"] and task.in_delta_m
    prediction, target = batch()
    for metric, names in ((task.metric(), [p.id for p in task.protocols]), (task.monitor(), ["edge_loss@1"])):
        metric.update(prediction, target)
        found = metric.compute()
        assert list(found) == names
        assert found["edge_loss@1"] == pytest.approx(float(task.loss(prediction, target)) / task.count(target))
        metric.reset()
        metric.update(prediction[2:3], target[2:3])
        assert all(map(math.isnan, metric.compute().values()))
