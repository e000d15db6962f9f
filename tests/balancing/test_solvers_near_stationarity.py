"""Rules where a combination of the gradients is nearly zero: against SLSQP, in every order, in both precisions."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from mtlbench.balancing import make_balancer
from tests.support.jacobians import jacobian

C = 0.4
GAPS = (0.0, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, -1e-8, -1e-6, -1e-4)
EPS = {torch.float64: 2.2e-16, torch.float32: 1.2e-7}


def nearly_opposite(gap, dtype=torch.float64):
    return torch.tensor([[1.0, 0.0], [-1.0, -gap], [0.3, 1.0]], dtype=dtype)


def nearly_stationary(seed, gap, tasks=4):
    """Gradients of which one convex combination has the length ``gap``, in more dimensions than tasks."""
    found = jacobian("plain", tasks, seed, columns=6)
    shares = torch.rand(tasks - 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.2
    found[-2] = -(shares[:-1] @ found[: tasks - 2]) / shares[-1] + gap * found[-2]
    return found


def cagrad(gradients):
    return make_balancer("cagrad", c=C, scale="mean").direction(gradients).double()


def best_worst_task(gradients):
    """Returns max t over (d, t) with ⟨g_i, d⟩ ≥ t in the ball: the conic problem itself, by SLSQP."""
    matrix = gradients.double().numpy()
    mean = matrix.mean(0)
    radius = C * np.linalg.norm(mean)
    ball = {
        "type": "ineq",
        "fun": lambda x: 1 - ((x[:-1] - mean) ** 2).sum() / radius**2,
        "jac": lambda x: np.append(-2 * (x[:-1] - mean) / radius**2, 0),
    }
    slope = np.hstack([matrix, -np.ones((len(matrix), 1))])
    rest = {"type": "ineq", "fun": lambda x: slope @ x, "jac": lambda x: slope}
    start = np.append(mean, (matrix @ mean).min())
    goal = np.append(np.zeros_like(mean), -1.0)
    options = {"ftol": 1e-15, "maxiter": 500}
    return -minimize(
        lambda x: -x[-1], start, jac=lambda x: goal, constraints=[ball, rest], method="SLSQP", options=options
    ).fun


def check(gradients, dtype, excess=0.0):
    found, exact = cagrad(gradients.to(dtype)), gradients.to(dtype).double()
    mean = exact.mean(0)
    size = mean.norm() * exact.norm(dim=1).max()
    slack = 3e-8 if dtype == torch.float64 else 2e-4
    assert (found - mean).norm() <= C * mean.norm() * (1 + 50 * EPS[dtype] ** 0.6 + excess)
    assert (exact @ found).min() >= best_worst_task(exact) - slack * size


@pytest.mark.parametrize("gap", [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3])
def test_cagrad_of_nearly_opposite_gradients_by_hand(gap):
    """min(x, -x - gap y) is largest at x = -gap y / 2, and then for the lowest y of the ball."""
    mean = (0.1, 1 / 3 - gap / 3)
    lowest = mean[1] - np.sqrt((C * np.hypot(*mean)) ** 2 - 0.01)
    found = cagrad(nearly_opposite(gap))
    np.testing.assert_allclose(found, [-gap * lowest / 2, lowest], rtol=0, atol=max(1e-6, gap))
    assert (nearly_opposite(gap) @ found).min().item() == pytest.approx(-gap * lowest / 2, rel=1e-3)


def test_cagrad_of_the_reported_jacobian():
    found = cagrad(nearly_opposite(1e-8))
    np.testing.assert_allclose(found, [0.0, 0.2365], atol=1e-5)
    worst, mean = (nearly_opposite(1e-8) @ found).min(), nearly_opposite(1e-8).mean(0)
    assert -2e-9 < worst < 0 and ((found - mean).norm() / (C * mean.norm())).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gap", GAPS)
def test_cagrad_is_optimal_near_stationarity_in_every_order(gap, dtype):
    gradients = nearly_opposite(gap, dtype)
    first = cagrad(gradients)
    for order in permutations(range(3)):
        check(gradients[list(order)], dtype)
        np.testing.assert_allclose(
            cagrad(gradients[list(order)]), first, rtol=0, atol=1e-6 if dtype == torch.float64 else 5e-2
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gap", [1.0, 1e-2, 1e-4, 1e-6])
def test_cagrad_is_optimal_on_random_gradients_of_every_gap(gap, dtype):
    for seed in range(4):
        # A Gramian holds the length of the combination, its square, to 1e-16 of those of the gradients.
        check(nearly_stationary(seed, gap), dtype, excess=1e-14 / gap**2)


@pytest.mark.parametrize(("name", "most"), [("nash_mtl", 0.05), ("fairgrad", 0.15)])
def test_bargaining_in_float32_hardly_depends_on_the_order(name, most):
    for seed in range(8):
        gradients = jacobian("plain", 4, seed, columns=30)
        gradients[3] = -gradients[0] + 3e-4 * gradients[3]
        gradients = gradients.float()
        found = []
        for order in map(list, permutations(range(4))):
            gramian = gradients[order] @ gradients[order].T  # In float32: rounding depends on the order.
            found.append(make_balancer(name).weights(gramian).double() @ gradients[order].double())
        assert max((d - found[0]).norm() for d in found) <= most * found[0].norm()


@pytest.mark.parametrize("name", ["upgrad", "dualproj"])
def test_projections_without_regularisation_are_exact_in_float64_near_full_conflict(name):
    for seed in range(4):
        gradients = nearly_stationary(seed, 1e-4)
        found = make_balancer(name, reg=0.0, scale="mean").direction(gradients)
        assert (gradients @ found).min() >= -1e-7 * gradients.norm(dim=1).max() ** 2


@pytest.mark.parametrize("name", ["moco", "db_mtl"])
@pytest.mark.parametrize("arguments", [{}, {"normalise": True}])
def test_rows_of_1e20_do_not_overflow_float32(name, arguments):
    if name == "db_mtl" and arguments:
        return
    gradients = jacobian("plain", 3, columns=70_000)
    large, same = make_balancer(name, **arguments), make_balancer(name, **arguments)
    for _ in range(3):
        found = large.direction((1e20 * gradients).float())
        expected = same.direction(1e20 * gradients)
        assert found.isfinite().all() and found.norm(dtype=torch.float64) > 0
        assert (found.double() - expected).norm() <= 1e-5 * expected.norm()
