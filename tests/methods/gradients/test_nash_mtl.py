"""Nash-MTL: goldens, the bargaining equation, its invariances, steps in between, and full conflict."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, ORTHOGONAL, context, gramian_of, rows
from tests.support.jacobians import INDEPENDENT, jacobian


def made(tasks, **arguments):
    rule = make_balancer("nash_mtl", **arguments)
    rule.configure(tasks)
    return rule


def at(step, tasks, active=None):
    return context(torch.ones(tasks), step=step, active=active)


def test_goldens():
    rule = make_balancer("nash_mtl")
    assert_close(rule.direction(rows(*CONFLICT)), rows(0.541196, 1.306563), atol=1e-6, rtol=0)
    assert_close(rule.direction(rows(*ORTHOGONAL)), rows(1.0, 1.0))
    assert_close(make_balancer("nash_mtl", scale="mean").direction(rows(*ORTHOGONAL)), rows(0.5, 0.5))


@pytest.mark.parametrize("tasks", [2, 3, 7, 40])
@pytest.mark.parametrize("kind", [*INDEPENDENT, "twins"])
def test_every_task_gains_the_inverse_of_its_weight(kind, tasks):
    gradients = jacobian(kind, tasks)
    alpha = make_balancer("nash_mtl").weights(gramian_of(gradients))
    found = alpha @ gradients
    assert (alpha > 0).all()
    assert_close(alpha * (gradients @ found), torch.ones(tasks).double(), rtol=0, atol=1e-8)
    assert found.norm().item() == pytest.approx(math.sqrt(tasks))


def test_the_size_of_a_gradient_does_not_matter():
    gradients = jacobian("plain", 5)
    factors = torch.tensor([1.0, 1e-3, 1e3, 20.0, 1e-5]).double()
    rule = make_balancer("nash_mtl")
    assert_close(rule.direction(factors[:, None] * gradients), rule.direction(gradients), rtol=1e-8, atol=1e-9)


def test_more_tasks_than_dimensions():
    gradients = jacobian("plain", 6, columns=3) * 0.5 + 1
    alpha = make_balancer("nash_mtl").weights(gramian_of(gradients))
    assert_close(alpha * (gradients @ (alpha @ gradients)), torch.ones(6).double(), rtol=0, atol=1e-6)


def test_zero_single_and_equal_gradients():
    rule = make_balancer("nash_mtl")
    assert rule.direction(torch.zeros(3, 2)).tolist() == [0.0, 0.0]
    with_zero = rule.weights(gramian_of(rows((1.0, 0.0), (0.0, 0.0), (-1.0, 1.0))))
    assert_close(with_zero, rows(1.847759, 0.0, 1.306563), atol=1e-6, rtol=0)
    assert_close(rule.direction(rows([3.0, -4.0])), rows(0.6, -0.8))
    # Two of (3, 4): d = √2 · (3, 4) / 5.
    assert_close(rule.direction(rows((3.0, 4.0), (3.0, 4.0))), rows(0.6, 0.8) * math.sqrt(2))
    assert rule.direction(torch.eye(2)).dtype == torch.float32


def test_full_conflict_is_finite():
    gradients = rows((1.0, 2.0, 0.0), (-1.0, -2.0, 0.0), (0.0, 0.0, 2.0))
    alpha = make_balancer("nash_mtl").weights(gramian_of(gradients))
    assert alpha.isfinite().all() and alpha.max() < 1e5
    # The two cancel out; the third is alone and bargains for 1.
    assert_close(alpha @ gradients, rows(0.0, 0.0, 1.0), rtol=0, atol=1e-6)


def test_the_norm_may_be_limited():
    limited = make_balancer("nash_mtl", max_norm=1.0)
    assert_close(limited.direction(rows(*ORTHOGONAL)), rows(1.0, 1.0) / math.sqrt(2))
    assert_close(make_balancer("nash_mtl", max_norm=1.5).direction(rows(*ORTHOGONAL)), rows(1.0, 1.0))
    # The limit holds for what is handed over: half of (1, 1) is short enough.
    assert_close(make_balancer("nash_mtl", max_norm=1.0, scale="mean").direction(rows(*ORTHOGONAL)), rows(0.5, 0.5))


def test_weights_are_kept_between_solutions():
    one, two = gramian_of(rows(*CONFLICT)), gramian_of(rows(*ORTHOGONAL))
    rule = made(2, update_every=3).double()
    first = rule.gradient_weights(one, at(0, 2))
    for step in (1, 2):
        assert_close(rule.gradient_weights(two, at(step, 2)), first, rtol=0, atol=0)
    assert_close(rule.gradient_weights(two, at(3, 2)), rows(1.0, 0.5))
    assert_close(rule.gradient_weights(one, at(4, 2)), rows(1.0, 0.5))


def test_kept_weights_are_limited_by_the_gradients_of_the_step():
    rule = made(2, update_every=2, max_norm=1.0).double()
    rule.gradient_weights(gramian_of(rows(*ORTHOGONAL)), at(0, 2))
    # α = (1, ½) on rows (3, 0), (0, 8): d = (3, 4), cut to norm 1.
    weights = rule.gradient_weights(gramian_of(rows((3.0, 0.0), (0.0, 8.0))), at(1, 2))
    assert_close(weights @ rows((3.0, 0.0), (0.0, 8.0)), rows(0.6, 0.8))


def test_an_absent_task_keeps_its_weight():
    rule = made(3, update_every=2).double()
    pair = gramian_of(rows(*ORTHOGONAL))
    rule.gradient_weights(pair, at(0, 2, active=(0, 2)))
    # Task 1 has never been solved for, so that its first step solves; task 0 then has another weight, task 2 its old.
    assert_close(rule.gradient_weights(4 * pair, at(1, 2, active=(0, 1))), rows(0.5, 0.25))
    assert_close(rule.gradient_weights(pair, at(1, 2, active=(1, 2))), rows(0.25, 0.5))


def test_state_is_in_the_checkpoint():
    rule, other = made(2, update_every=5), made(2, update_every=5)
    rule.gradient_weights(gramian_of(rows(*CONFLICT)), at(0, 2))
    other.load_state_dict(rule.state_dict())
    new = gramian_of(rows(*ORTHOGONAL))
    for step in (1, 4, 5, 6):
        assert torch.equal(rule.gradient_weights(new, at(step, 2)), other.gradient_weights(new, at(step, 2)))
    assert not list(rule.parameters())


def test_tasks_may_change_places():
    gradients, order = jacobian("plain", 5), [3, 0, 4, 1, 2]
    rule = make_balancer("nash_mtl")
    assert_close(rule.weights(gramian_of(gradients[order])), rule.weights(gramian_of(gradients))[order])


@pytest.mark.parametrize("arguments", [{"update_every": 0}, {"max_norm": -1.0}, {"max_norm": float("nan")}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(MethodError, match=f"nash_mtl: {next(iter(arguments))} must be"):
        make_balancer("nash_mtl", **arguments)
