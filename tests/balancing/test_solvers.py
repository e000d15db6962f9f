"""The small solvers: conditions that only the optimum meets, on every awkward Jacobian, and slow references."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from mtlbench.balancing.rules import solvers
from tests.support.jacobians import KINDS, jacobian
from tests.support.projections_by_hand import cone, hull

SIZES = (2, 3, 5, 13, 40)
OPPOSITE = np.array([[1.0, 2.0, 0.0], [-1.0, -2.0, 0.0], [0.0, 1.0, 1.0]])


def rows_of(kind, tasks, seed=0):
    return jacobian(kind, tasks, seed).numpy()


def lengths(rows):
    norms = np.linalg.norm(rows, axis=1)
    return np.where(norms > 0, norms, 1.0)


# ---- the shortest vector of the hull --------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_min_norm_is_optimal(kind, tasks):
    for seed in range(3):
        rows = rows_of(kind, tasks, seed)
        weights = solvers.min_norm(rows @ rows.T)
        found = weights @ rows
        assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
        # d is the shortest if and only if no g_i reaches less far along d than d itself.
        slack = (rows @ found - found @ found) / (lengths(rows) * (weights @ lengths(rows)))
        assert slack.min() >= -1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_min_norm_is_the_nearest_point_of_all_faces(kind):
    for seed in range(5):
        rows = rows_of(kind, 5, seed)[:, :7]
        np.testing.assert_allclose(solvers.min_norm(rows @ rows.T) @ rows, hull(rows), rtol=1e-7, atol=1e-9)


def test_min_norm_by_hand():
    assert solvers.min_norm(np.array([[1.0, 3.0], [3.0, 16.0]])).tolist() == [1.0, 0.0]
    assert solvers.min_norm(np.array([[16.0, 3.0], [3.0, 1.0]])).tolist() == [0.0, 1.0]
    assert solvers.min_norm(np.ones((2, 2))).tolist() == [0.5, 0.5]
    assert solvers.min_norm(np.array([[7.0]])).tolist() == [1.0]
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(solvers.min_norm(rows @ rows.T), [0.5, 0.5, 0.0], atol=1e-15)
    # Weights of orthogonal gradients are inverse to their squared norms, however small.
    np.testing.assert_allclose(solvers.min_norm(np.diag([1e12, 1.0])), [1e-12, 1.0], rtol=1e-11)
    np.testing.assert_allclose(solvers.min_norm(np.diag([1e12, 1.0, 1e12])), [1e-12, 1.0, 1e-12], rtol=1e-8)


# ---- the dual cone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_dual_cone_is_optimal(kind, tasks):
    rows = rows_of(kind, tasks)
    wanted = np.vstack([np.eye(tasks) / tasks, np.full((1, tasks), 1 / tasks)])
    for u, v in zip(wanted, solvers.dual_cone(rows @ rows.T, wanted), strict=True):
        found, size = v @ rows, max(u @ lengths(rows), 1e-300)
        assert (v >= u).all()
        assert (rows @ found / lengths(rows)).min() >= -1e-9 * size
        # A weight is raised only where its constraint is active.
        assert abs((v - u) @ (rows @ found)) <= 1e-9 * size**2


@pytest.mark.parametrize("kind", KINDS)
def test_dual_cone_is_the_nearest_point_of_all_faces(kind):
    for seed in range(5):
        rows = rows_of(kind, 5, seed)[:, :7]
        for u in (np.full(5, 0.2), np.eye(5)[1]):
            found = solvers.dual_cone(rows @ rows.T, u[None])[0] @ rows
            np.testing.assert_allclose(found, cone(rows, u @ rows), rtol=0, atol=1e-8 * np.linalg.norm(u @ rows))


def test_dual_cone_of_opposite_gradients():
    # d must stand upright on g_1, so it is along (-2, 1, 5): g_3 (0, 1, 1) gives 6/30 of it, g_1 nothing.
    found = solvers.dual_cone(OPPOSITE @ OPPOSITE.T, np.eye(3)) @ OPPOSITE
    np.testing.assert_allclose(found, [[0, 0, 0], [0, 0, 0], [-0.4, 0.2, 1.0]], atol=1e-12)


def test_a_cycle_of_the_active_set_ends(monkeypatch):
    def circles(*arguments, **options):
        raise RuntimeError("Maximum number of iterations reached.")

    rows = rows_of("plain", 5)
    u = np.eye(5)[:1]
    exact = solvers.dual_cone(rows @ rows.T, u) @ rows
    monkeypatch.setattr(solvers, "nnls", circles)
    np.testing.assert_allclose(solvers.dual_cone(rows @ rows.T, u) @ rows, exact, rtol=1e-4, atol=1e-4)


# ---- the ball around the mean ---------------------------------------------------------------------------------------


def bound(rows, weights, c):
    """Returns ⟨ḡ, g_w⟩ + c ‖ḡ‖ ‖g_w‖ for w on the simplex: no direction in the ball improves the worst task by more."""
    mean, mixed = rows.mean(0), weights @ rows
    return mean @ mixed + c * np.linalg.norm(mean) * np.linalg.norm(mixed)


@pytest.mark.parametrize("c", [0.05, 0.4, 0.95])
@pytest.mark.parametrize("tasks", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_conflict_averse_reaches_its_bound(kind, tasks, c):
    for seed in range(2):
        rows = rows_of(kind, tasks, seed)
        weights = solvers.conflict_averse(rows @ rows.T, c)
        found, mean, norms = weights @ rows, rows.mean(0), np.linalg.norm(rows, axis=1)
        assert np.linalg.norm(found - mean) <= c * np.linalg.norm(mean) * (1 + 1e-9)
        worst = weights - 1 / tasks
        assert worst.min() >= -1e-12
        worst = worst / worst.sum()
        gap = bound(rows, worst, c) - (rows @ found)[norms > 0].min()
        assert abs(gap) <= 1e-8 * (worst @ norms) * np.linalg.norm(mean)


def test_conflict_averse_is_the_lowest_bound():
    for seed in range(5):
        rows = rows_of("plain", 4, seed)[:, :5]
        found = solvers.conflict_averse(rows @ rows.T, 0.5) @ rows
        simplex = {"type": "eq", "fun": lambda w: w.sum() - 1}
        lowest = minimize(
            lambda w, rows=rows: bound(rows, w, 0.5),
            np.full(4, 0.25),
            bounds=[(0, 1)] * 4,
            constraints=simplex,
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        assert (rows @ found).min() == pytest.approx(lowest.fun, abs=1e-6)


def test_two_and_three_gradients_agree():
    # A third gradient that is the second again turns the closed form into the search.
    for seed in range(20):
        one, two = rows_of("plain", 2, seed)[:, :3]
        mean = (one + two) / 2
        rows = np.stack([one, two])
        pair = solvers._worst_pair(rows @ rows.T, rows @ mean, 0.3) @ rows
        search = solvers._worst(np.stack([one, two, two]).T, mean, 0.3) @ np.stack([one, two, two])
        np.testing.assert_allclose(pair, search, atol=1e-9)


# ---- fair shares ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("tasks", SIZES)
@pytest.mark.parametrize("kind", ["plain", "zero row", "twins", "spread"])
def test_alpha_fair_solves_its_equation(kind, tasks, alpha):
    rows = rows_of(kind, tasks)
    weights = solvers.alpha_fair(rows @ rows.T, alpha)
    some = np.linalg.norm(rows, axis=1) > 0
    assert (weights[~some] == 0).all() and (weights[some] > 0).all()
    shares = (rows @ (weights @ rows))[some] * weights[some] ** (1 / alpha)
    np.testing.assert_allclose(shares, 1, rtol=1e-7)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_alpha_fair_of_a_low_rank_is_exact_where_a_solution_exists(alpha):
    for seed in range(10):
        rows = rows_of("plain", 6, seed)[:, :3] * 0.5 + 1  # Six gradients in three dimensions, none in full conflict.
        weights = solvers.alpha_fair(rows @ rows.T, alpha)
        np.testing.assert_allclose((rows @ (weights @ rows)) * weights ** (1 / alpha), 1, rtol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_alpha_fair_close_to_full_conflict(alpha):
    # Rank 2, and weights of several hundred: a ridge alone would be wrong by 1e-3.
    rows = np.array([[1.0, 0.003], [-1.0, 0.003], [0.0, 1.0]])
    weights = solvers.alpha_fair(rows @ rows.T, alpha)
    np.testing.assert_allclose((rows @ (weights @ rows)) * weights ** (1 / alpha), 1, rtol=1e-5)


def test_alpha_fair_takes_the_tiniest_gradients_for_zero():
    assert solvers.alpha_fair(np.diag([1.0, 1e-26]), 1.0).tolist() == [1.0, 0.0]
    np.testing.assert_allclose(solvers.alpha_fair(np.diag([1.0, 1e-20]), 1.0), [1.0, 1e10])


@pytest.mark.parametrize("alpha", [0.1, 1.0, 2.0, 100.0])
def test_alpha_fair_in_full_conflict_is_bounded(alpha):
    weights = solvers.alpha_fair(OPPOSITE @ OPPOSITE.T, alpha)
    assert (weights > 0).all() and weights.max() < 1e9
    found = weights @ OPPOSITE
    # What can be improved is: the third, upright on the first two. The conflict cancels out.
    assert OPPOSITE[2] @ found > 0.1
    np.testing.assert_allclose(OPPOSITE[:2] @ found, 0, atol=1e-3)


def test_two_gradients_bargain_in_closed_form():
    # Cosine ρ: by symmetry both unit gradients have y with y² (1 + ρ) = 1.
    for first, second, cosine in ((1.0, 1.0, 0.3), (1e-3, 1e3, -0.9), (2.0, 5.0, -0.999)):
        gramian = np.array([[first**2, cosine * first * second], [cosine * first * second, second**2]])
        expected = np.array([1 / first, 1 / second]) / np.sqrt(1 + cosine)
        np.testing.assert_allclose(solvers.alpha_fair(gramian, 1.0), expected, rtol=1e-9)


@pytest.mark.parametrize(("kind", "rank"), [("plain", 6), ("zero row", 5), ("twins", 5), ("dependent", 3)])
def test_a_gramian_is_taken_apart_without_rounding_errors(kind, rank):
    rows = rows_of(kind, 6)
    points = solvers._points(rows @ rows.T)
    np.testing.assert_allclose(points.T @ points, rows @ rows.T, atol=1e-11)
    assert np.count_nonzero(np.linalg.norm(points, axis=1)) == rank


def test_nothing_but_zeros():
    nothing = np.zeros((3, 3))
    for weights in (
        solvers.min_norm(nothing),
        solvers.dual_cone(nothing, np.eye(3)),
        solvers.conflict_averse(nothing, 0.5),
        solvers.alpha_fair(nothing, 1.0),
    ):
        assert np.isfinite(weights).all()


def test_float32_gramians_stay_in_hand():
    """Rounding makes such Gramians indefinite; twins and opposites then have no exact answer."""
    for seed in range(20):
        rows = rows_of("plain", 6, seed).astype(np.float32)
        rows[4], rows[5] = rows[0], -rows[1]
        gramian = (rows @ rows.T).astype(float)
        mean = np.linalg.norm(rows.mean(0))
        assert np.linalg.norm(solvers.min_norm(gramian) @ rows) < 1e-3
        assert np.linalg.norm(solvers.conflict_averse(gramian, 0.4) @ rows - rows.mean(0)) <= 0.41 * mean
        projected = solvers.dual_cone(gramian, np.eye(6) / 6).sum(0) @ rows
        assert (rows @ projected).min() >= -1e-3
        assert np.linalg.norm(solvers.alpha_fair(gramian, 1.0) @ rows) <= 2 * np.sqrt(6)
