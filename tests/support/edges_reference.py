"""A plain, slow reference for boundary scores: loops over pixels and one dense assignment per threshold."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

AROUND = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]


def at(values, y, x):
    """Returns a map between its pixels, linearly interpolated, 0 outside."""
    total, below, left = 0.0, int(np.floor(y)), int(np.floor(x))
    for row, column in ((below, left), (below + 1, left), (below, left + 1), (below + 1, left + 1)):
        if 0 <= row < values.shape[0] and 0 <= column < values.shape[1]:
            total += values[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def suppressed(probability, lowest):
    kept = np.zeros(probability.shape, bool)
    slope = np.stack(np.gradient(probability))
    tensor = ndimage.gaussian_filter(slope[:, None] * slope[None], (0, 0, 2.0, 2.0))
    for y, x in np.argwhere(probability >= lowest):
        dy, dx = np.linalg.eigh(tensor[:, :, y, x])[1][:, 1]  # of the greatest change
        sides = (at(probability, y + dy, x + dx), at(probability, y - dy, x - dx))
        kept[y, x] = max(sides) <= 1.01 * probability[y, x]
    return kept


def superfluous(window):
    """Returns whether the centre of (3, 3) can be removed: its neighbours stay connected, and it ends no line."""
    around = window.copy()
    around[1, 1] = False
    # Connected neighbours, where two sides of a corner touch diagonally; a hole must not appear in the middle.
    parts = ndimage.label(around, np.ones((3, 3)))[1]
    inside = window[0, 1] and window[1, 0] and window[1, 2] and window[2, 1]
    near = [window[1 + dy, 1 + dx] for dy, dx in AROUND]
    corner_first = sum(near[i] or near[i + 1] for i in (0, 2, 4, 6))
    side_first = sum(near[i] or near[(i + 1) % 8] for i in (1, 3, 5, 7))
    return parts == 1 and not inside and min(corner_first, side_first) >= 2


def thinned(mask, level, height):
    mask = np.pad(mask, 1)
    order = sorted(map(tuple, np.argwhere(mask[1:-1, 1:-1])), key=lambda p: (level[p], round(height[p], 9), p))
    changed = True
    while changed:
        changed = False
        for y, x in order:
            if mask[y + 1, x + 1] and superfluous(mask[y : y + 3, x : x + 3]):
                mask[y + 1, x + 1], changed = False, True
    return mask[1:-1, 1:-1]


def matched(predicted, truth, reach):
    """Returns how many pairs an assignment of least distance has, a missing pair being worse than any distance."""
    distance = np.linalg.norm(predicted[:, None] - truth[None], axis=-1)
    cost = np.where(distance <= reach, distance, 1e6)
    return int((distance[linear_sum_assignment(cost)] <= reach).sum())


def counts(probability, truths, thresholds, max_distance):
    """Returns (4, K): matched and all predicted pixels, matched and all true pixels."""
    labelled = truths != 255
    probability = np.where(labelled.any(0), probability, 0.0)
    level = np.array([[sum(p >= t for t in thresholds) for p in row] for row in probability])
    mask = thinned(suppressed(probability, thresholds[0]), level, ndimage.gaussian_filter(probability, 2.0))
    edges = [thinned(t == 1, (t == 1) * 1, ndimage.gaussian_filter((t == 1) * 1.0, 2.0)) for t in truths]
    truth = [np.argwhere(edge) for edge in edges]
    reach = max_distance * np.sqrt(probability.shape[0] ** 2 + probability.shape[1] ** 2)
    found = []
    for threshold in thresholds:
        predicted = np.argwhere(mask & (probability >= threshold))
        hits = [matched(predicted, t, reach) for t in truth]
        found.append(
            (matched(predicted, np.concatenate(truth), reach), len(predicted), sum(hits), sum(map(len, truth)))
        )
    return np.array(found).T


def ratio(a, b):
    return a / b if b else 0.0


def f_of(right, predicted, hit, true):
    precision, recall = ratio(right, predicted), ratio(hit, true)
    return ratio(2 * precision * recall, precision + recall)


def scores(every):
    """Returns odsF and oisF of the counts of several images."""
    total = sum(every)
    best = sum(one[:, int(np.argmax([f_of(*column) for column in one.T]))] for one in every)
    return max(f_of(*column) for column in total.T), f_of(*best)
