"""What the solvers do where the usual way fails: a cycling active set, and gradients that nearly cancel."""

from __future__ import annotations

import numpy as np
import pytest

from mtlbench.balancing.rules import solvers

SINGLE = float(np.finfo(np.float32).eps)


def failing(*args, **options):
    raise RuntimeError("Maximum number of iterations reached.")


@pytest.mark.parametrize("seed", range(6))
def test_the_shortest_change_is_the_same_where_the_active_set_cycles(seed, monkeypatch):
    """The other method leaves small weights on all columns, of which only some bound the change."""
    generator = np.random.default_rng(seed)
    units, bounds = generator.normal(size=(4, 4)), generator.normal(size=4)
    units /= np.linalg.norm(units, axis=0)
    expected, share = solvers._least_change(units, bounds)
    assert (units.T @ expected >= bounds - 1e-9).all() and share == pytest.approx(1 / (1 + expected @ expected))
    monkeypatch.setattr(solvers, "nnls", failing)
    found, other = solvers._least_change(units, bounds)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert other == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(("precision", "most", "kept"), [(SINGLE, 1e4, 1e-2), (2.2e-16, 1.5e9, 1e-6)])
def test_weights_of_gradients_that_nearly_cancel_stay_small(precision, most, kept):
    """By hand: the columns (1, 0) and (-1, δ) make (0, 1) with weights 1 / δ, unless they grow too large."""
    for power in range(1, 16):
        apart = 10.0**-power
        points = np.array([[1.0, -1.0], [0.0, apart]])
        weights = solvers._small_weights(points, np.array([0.0, 1.0]), precision)
        assert (weights >= 0).all() and weights.max() < most
        if apart >= kept:
            np.testing.assert_allclose(weights, 1 / apart, rtol=1e-3)
