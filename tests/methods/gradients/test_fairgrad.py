"""FairGrad: goldens, its equation, Nash-MTL as a special case, and TorchJD."""

from __future__ import annotations

import pytest
import torch
import torchjd.aggregation
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, ORTHOGONAL, context, gramian_of, rows
from tests.support.jacobians import INDEPENDENT, KINDS, jacobian


def test_goldens():
    bargain = make_balancer("fairgrad", alpha=1.0).direction(rows(*CONFLICT))
    assert_close(bargain, rows(0.541196, 1.306563), atol=1e-6, rtol=0)
    weights = make_balancer("fairgrad").weights(gramian_of(rows(*ORTHOGONAL)))
    assert_close(weights, rows(1.0, 0.39685), atol=1e-5, rtol=0)
    # Alone, w^(1 + 1/α) = 1 / ‖g‖²: with α = ½ and ‖g‖ = 8, w = 64^(-1/3).
    assert_close(make_balancer("fairgrad", alpha=0.5).weights(rows([64.0])), rows(0.25))
    assert_close(make_balancer("fairgrad", alpha=0.5, scale="mean").weights(64 * torch.eye(2)), torch.full((2,), 0.125))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("tasks", [2, 3, 7, 40])
@pytest.mark.parametrize("kind", [*INDEPENDENT, "twins"])
def test_every_task_gets_its_share(kind, tasks, alpha):
    gradients = jacobian(kind, tasks)
    weights = make_balancer("fairgrad", alpha=alpha).weights(gramian_of(gradients))
    assert (weights > 0).all()
    gains = gradients @ (weights @ gradients)
    assert_close(gains * weights ** (1 / alpha), torch.ones(tasks).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("scale", ["sum", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_one_it_is_nash_mtl(kind, scale):
    gramian = gramian_of(jacobian(kind, 6))
    found = make_balancer("fairgrad", alpha=1.0, scale=scale).weights(gramian)
    assert_close(found, make_balancer("nash_mtl", scale=scale).weights(gramian))


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_it_is_torchjd(alpha):
    for seed in range(3):
        gradients = jacobian("plain", 5, seed, columns=8)
        theirs = torchjd.aggregation.FairGrad(alpha=alpha)(gradients)
        assert_close(make_balancer("fairgrad", alpha=alpha).direction(gradients), theirs, rtol=1e-4, atol=1e-4)


def test_a_larger_alpha_evens_out_gains():
    gradients, spread = rows((1.0, 0.0), (0.5, 3.0)), []
    for alpha in (1.0, 2.0, 5.0, 50.0):
        gains = gradients @ make_balancer("fairgrad", alpha=alpha).direction(gradients)
        spread.append((gains.max() / gains.min()).item())
    assert spread == sorted(spread, reverse=True) and spread[-1] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("alpha", [0.1, 2.0, 1e6])
def test_zero_single_equal_and_opposite_gradients(alpha):
    rule = make_balancer("fairgrad", alpha=alpha)
    assert rule.direction(torch.zeros(3, 2)).tolist() == [0.0, 0.0]
    with_zero = rule.weights(gramian_of(rows((1.0, 0.0), (0.0, 0.0), (-1.0, 1.0))))
    without = rule.weights(gramian_of(rows(*CONFLICT)))
    assert_close(with_zero, rows(without[0], 0.0, without[1]))
    assert_close(rule.direction(rows([0.6, -0.8])), rows(0.6, -0.8))
    # Two of length 1: 2 w = w^(-1/α), d = 2 w g.
    assert_close(rule.direction(rows((0.6, 0.8), (0.6, 0.8))), 2 * 2 ** (-alpha / (1 + alpha)) * rows(0.6, 0.8))
    opposite = rule.weights(gramian_of(rows((1.0, 2.0), (-1.0, -2.0))))
    assert opposite.isfinite().all()
    assert_close(opposite[0], opposite[1])


def test_only_active_tasks_count():
    rule = make_balancer("fairgrad")
    rule.configure(4)
    found = rule.gradient_weights(gramian_of(rows(*ORTHOGONAL)), context(rows(1.0, 1.0), active=(1, 3)))
    assert_close(found, rows(1.0, 4 ** (-2 / 3)))


def test_tasks_may_change_places():
    gradients, order = jacobian("spread", 5), [3, 0, 4, 1, 2]
    rule = make_balancer("fairgrad")
    assert_close(rule.weights(gramian_of(gradients[order])), rule.weights(gramian_of(gradients))[order])


@pytest.mark.parametrize("alpha", [0.0, -1.0, 0.05, float("nan"), float("inf")])
def test_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(MethodError, match="fairgrad: alpha must be finite and at least 0.1"):
        make_balancer("fairgrad", alpha=alpha)
