"""CAGrad: goldens, the ball around the mean, the worst task within it, and what happens where all is in balance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, ORTHOGONAL, context, gramian_of, rows
from tests.support.jacobians import KINDS, jacobian


def mean(**arguments):
    return make_balancer("cagrad", scale="mean", **arguments)


def test_goldens():
    assert_close(mean(c=0.5).direction(rows(*CONFLICT)), rows(0.25, 0.5))
    assert_close(mean(c=0.5).direction(rows(*ORTHOGONAL)), rows(1.059017, 1.0), atol=1e-6, rtol=0)
    assert_close(make_balancer("cagrad", c=0.5).direction(rows(*CONFLICT)), rows(0.5, 1.0))


def test_rescaling():
    # 1 + c² and 1 + c with c = ½.
    assert_close(mean(c=0.5, rescale="squared").direction(rows(*CONFLICT)), rows(0.2, 0.4))
    assert_close(mean(c=0.5, rescale="linear").direction(rows(*CONFLICT)), rows(0.25, 0.5) / 1.5)


def test_without_a_radius_it_is_the_mean():
    gradients = jacobian("plain", 6)
    assert_close(mean(c=0.0).direction(gradients), gradients.mean(0))


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("tasks", [2, 3, 7, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_it_stays_in_the_ball(kind, tasks, c):
    gradients = jacobian(kind, tasks)
    average, found = gradients.mean(0), mean(c=c).direction(gradients)
    assert (found - average).norm() <= c * average.norm() * (1 + 1e-9)
    assert average @ found >= (1 - c) * average @ average * (1 - 1e-9)


@pytest.mark.parametrize("kind", ["plain", "twins", "dependent"])
def test_no_direction_in_the_ball_is_better_for_the_worst_task(kind):
    for seed in range(4):
        gradients = jacobian(kind, 4, seed, columns=5)
        average = gradients.mean(0)
        radius = 0.4 * average.norm()
        worst = (gradients @ mean().direction(gradients)).min()
        # Maximise t over (d, t): ⟨g_i, d⟩ ≥ t, ‖d - ḡ‖ ≤ radius.
        matrix, centre = gradients.numpy(), average.numpy()
        ball = {"type": "ineq", "fun": lambda x, b=centre, r=radius: float(r) ** 2 - ((x[:-1] - b) ** 2).sum()}
        tasks = {"type": "ineq", "fun": lambda x, m=matrix: m @ x[:-1] - x[-1]}
        start = np.append(centre, (matrix @ centre).min())
        best = minimize(lambda x: -x[-1], start, constraints=[ball, tasks], method="SLSQP", options={"ftol": 1e-13})
        assert worst.item() == pytest.approx(-best.fun, abs=1e-5)


def test_opposite_gradients():
    # ḡ = (-1, 0). On the line, min(d, -3 d) is largest where d is nearest to 0: at -(1 - c).
    assert_close(mean().direction(rows((1.0, 0.0), (-3.0, 0.0))), rows(-0.6, 0.0))
    assert_close(mean().direction(rows((1.0, 2.0), (-1.0, -2.0))), rows(0.0, 0.0))


def test_where_nothing_can_improve_for_all_it_stays_next_to_the_mean():
    # g_1 + g_2 = 0, so that min ⟨g_i, d⟩ ≤ 0, reached by every d = (0, y ≥ 0) of the ball.
    assert_close(mean().direction(rows((1.0, 0.0), (-1.0, 0.0), (0.0, 3.0))), rows(0.0, 1.0))
    assert_close(mean().direction(rows((1.0, 0.0), (-1.0, 0.0), (1.0, 3.0))), rows(0.0, 1.0))
    # ḡ = (1, 1) is 1 away from (0, 1), but the ball is only 0.4 √2 wide.
    cut = 1 - 0.4 * math.sqrt(2)
    assert_close(mean().direction(rows((1.0, 0.0), (-1.0, 0.0), (3.0, 3.0))), rows(cut, 1.0))


def test_zero_single_and_equal_gradients():
    assert_close(mean().direction(torch.zeros(3, 2)), torch.zeros(2))
    # A zero gradient halves or thirds ḡ but has no say: the other two are orthogonal and alike.
    assert_close(mean().direction(rows((3.0, 0.0), (0.0, 3.0), (0.0, 0.0))), rows(1.4, 1.4))
    # One or equal gradients: d = (1 + c) g, on the mean scale.
    assert_close(mean().direction(rows([3.0, -4.0])), rows(4.2, -5.6))
    assert_close(make_balancer("cagrad").direction(torch.tensor([[1.0, 2.0], [1.0, 2.0]])), torch.tensor([2.8, 5.6]))


def test_only_active_tasks_count():
    rule = mean(c=0.5)
    rule.configure(4)
    found = rule.gradient_weights(gramian_of(rows(*CONFLICT)), context(rows(1.0, 1.0), active=(1, 3)))
    assert_close(found @ rows(*CONFLICT), rows(0.25, 0.5))


def test_tasks_may_change_places():
    gradients, order = jacobian("plain", 5), [3, 0, 4, 1, 2]
    assert_close(mean().weights(gramian_of(gradients[order])), mean().weights(gramian_of(gradients))[order])


@pytest.mark.parametrize("c", [1.0, -0.1, 1.5, float("nan")])
def test_c_out_of_range_is_refused(c):
    with pytest.raises(MethodError, match=r"cagrad: c must be in \[0, 1\)\. Found"):
        make_balancer("cagrad", c=c)


def test_an_unknown_rescale_is_refused():
    with pytest.raises(MethodError, match=r"cagrad: Unknown rescale 'square'. Did you mean 'squared'"):
        make_balancer("cagrad", rescale="square")
