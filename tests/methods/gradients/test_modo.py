"""MoDo: goldens, TorchJD's rule step by step, state and absent tasks; and the projection onto the simplex."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torchjd.aggregation
from scipy.optimize import brentq
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.rules.simplex import project, read_share, write_share
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, context, gramian_of, rows
from tests.support.jacobians import KINDS, jacobian


def made(tasks, **arguments):
    rule = make_balancer("modo", **{"scale": "mean", **arguments})
    rule.configure(tasks)
    return rule.double()


def cross(kind, tasks, seed):
    """G₁ G₂ᵀ of two mini-batches whose gradients have something in common: not symmetric."""
    common, one, two = (jacobian(kind, tasks, seed + offset) for offset in (0, 100, 200))
    return (common + 0.3 * one) @ (common + 0.3 * two).T


def test_golden():
    rule = made(2, gamma=0.1, rho=0.0)
    assert_close(rule.weights(gramian_of(rows(*CONFLICT))), rows(0.525, 0.475))
    assert_close(rule.task_weights, rows(0.525, 0.475))
    # M λ = (0.05, 0.425), so λ - 0.1 M λ = (0.52, 0.4325), whose sum lacks 0.0475.
    assert_close(rule.weights(gramian_of(rows(*CONFLICT))), rows(0.54375, 0.45625))


def test_rho_pulls_towards_equal_weights():
    rule = made(2, gamma=0.1, rho=1.0)
    rule.task_weights.copy_(rows(0.9, 0.1))
    assert_close(rule.weights(torch.zeros(2, 2).double()), rows(0.86, 0.14))  # 0.9 (0.9, 0.1) + 0.05


def test_weights_of_two_batches_act_on_the_third():
    batches = jacobian("plain", 3) + 0.3 * torch.stack([jacobian("plain", 3, seed) for seed in (1, 2, 3)])

    def weights(one, two):
        return made(3, gamma=0.01).weights(batches[one] @ batches[two].T)

    assert made(3).batches == 3
    assert_close(made(3, gamma=0.01).direction(batches), weights(0, 1) @ batches[2])
    assert not torch.allclose(weights(0, 1), weights(1, 0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("tasks", [2, 5, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_torchjd_step_by_step(kind, tasks):
    rule, theirs = made(tasks, gamma=0.003), torchjd.aggregation.MoDoWeighting(gamma=0.003, rho=0.1)
    for seed in range(6):
        matrix = cross(kind, tasks, seed)
        weights = rule.weights(matrix)
        assert_close(weights, theirs(matrix), rtol=0, atol=1e-9)
        assert (weights >= 0).all() and weights.sum().item() == pytest.approx(1)


def test_scales_one_task_and_no_gradient():
    matrix = cross("plain", 4, 0)
    assert_close(made(4, scale="sum").weights(matrix), 4 * made(4).weights(matrix))
    assert_close(made(1).direction(rows([3.0, -4.0])), rows(3.0, -4.0))
    assert_close(made(3).direction(torch.zeros(3, 2).double()), rows(0.0, 0.0))


def test_tasks_may_change_places():
    rule, other, order = made(4, gamma=0.01), made(4, gamma=0.01), [2, 0, 3, 1]
    for seed in range(3):
        matrix = cross("plain", 4, seed)
        assert_close(other.weights(matrix[order][:, order]), rule.weights(matrix)[order])


def test_absent_tasks_rest():
    rule = made(3, gamma=0.1, rho=0.0)
    rule.task_weights.copy_(rows(0.3, 0.4, 0.3))
    weights = rule.gradient_weights(gramian_of(rows(*CONFLICT)), context(torch.ones(2), active=(0, 2)))
    # The two present tasks move as in the golden, and divide 0.6 of the whole.
    assert_close(weights, rows(0.525, 0.475))
    assert_close(rule.task_weights, rows(0.315, 0.4, 0.285))


def test_a_resumed_rule_continues_bit_for_bit():
    rule, other = made(4, gamma=0.01), made(4, gamma=0.01)
    first = rule.weights(cross("plain", 4, 0))
    other.load_state_dict(copy.deepcopy(rule.state_dict()))
    for seed in (1, 2):
        matrix = cross("plain", 4, seed)
        assert torch.equal(rule.weights(matrix), other.weights(matrix))
    assert not torch.allclose(made(4, gamma=0.01).weights(cross("plain", 4, 2)), rule.task_weights)
    assert not torch.equal(first, rule.task_weights) and not list(rule.parameters())


def test_float32_state_stays_on_the_simplex():
    rule = make_balancer("modo", scale="mean", gamma=0.01)
    rule.configure(3)
    for seed in range(50):
        weights = rule.weights(cross("plain", 3, seed).float())
    assert weights.dtype == rule.task_weights.dtype == torch.float32
    assert rule.task_weights.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("arguments", [{"gamma": 0.0}, {"gamma": float("nan")}, {"rho": -0.1}, {"rho": float("inf")}])
def test_arguments_out_of_range(arguments):
    with pytest.raises(MethodError, match=rf"modo: {next(iter(arguments))} must be .* Found"):
        make_balancer("modo", **arguments)


# ---- the simplex ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.1, 1.0, 1e3, 1e9])
@pytest.mark.parametrize("size", [1, 2, 3, 10, 40])
def test_projection_is_the_nearest_point(size, spread):
    point = spread * np.random.default_rng(size).standard_normal(size)
    # Its form is max(v - t, 0) with the root t of Σ max(v - t, 0) = 1.
    relative = point - point.max()
    threshold = brentq(lambda t: np.maximum(relative - t, 0).sum() - 1, -1.5, 0, xtol=1e-15)
    found = project(point)
    assert found.min() >= 0 and found.sum() == pytest.approx(1, abs=1e-12)
    assert found == pytest.approx(np.maximum(relative - threshold, 0), abs=1e-9)


def test_projection_of_known_points():
    assert project(np.array([0.2, 0.3, 0.5])) == pytest.approx([0.2, 0.3, 0.5])
    assert project(np.array([2.0, 0.0])).tolist() == [1.0, 0.0]
    assert project(np.array([7.0, 7.0, 7.0])) == pytest.approx([1 / 3] * 3)
    assert project(np.array([1.0, 0.5, -1.0])) == pytest.approx([0.75, 0.25, 0.0])
    # A common shift changes nothing, however large.
    near = np.array([0.5, 0.4375, 0.375])
    for point in (near, 2.0**40 + near):
        assert project(point) == pytest.approx(np.array([19, 16, 13]) / 48, abs=1e-12)


def test_shares_of_active_tasks():
    weights = torch.tensor([0.5, 0.2, 0.3, 0.0]).double()
    assert read_share(weights, (1, 2)) == pytest.approx([0.4, 0.6])
    assert read_share(weights, (3,)).tolist() == [1.0]
    write_share(weights, (1, 2), np.array([1.0, 0.0]))
    assert_close(weights, rows(0.5, 0.5, 0.0, 0.0))
