"""Slow, simple projections on the gradients themselves: every set of active constraints is tried."""

from __future__ import annotations

from itertools import combinations

import numpy as np


def subsets(count):
    for size in range(count + 1):
        yield from (list(chosen) for chosen in combinations(range(count), size))


def hull(rows):
    """Returns the point of the convex hull of the rows (T, P) that is closest to the origin."""
    best = None
    for chosen in subsets(len(rows)):
        if not chosen:
            continue
        first, edges = rows[chosen[0]], rows[chosen[1:]] - rows[chosen[0]]
        steps = np.linalg.lstsq(edges.T, -first, rcond=None)[0]
        point = first + steps @ edges
        inside = (steps >= -1e-9).all() and steps.sum() <= 1 + 1e-9
        if inside and (best is None or point @ point < best @ best):
            best = point
    return best


def cone(rows, target):
    """Returns the point closest to ``target`` (P,) among those d with rows @ d ≥ 0."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows, best = rows / np.where(norms > 0, norms, 1), None
    for chosen in subsets(len(rows)):
        active = rows[chosen]
        point = target - np.linalg.pinv(active, rcond=1e-10) @ (active @ target) if chosen else target
        feasible = (rows @ point >= -1e-9 * np.linalg.norm(target)).all()
        if feasible and (best is None or np.linalg.norm(point - target) < np.linalg.norm(best - target)):
            best = point
    return best
