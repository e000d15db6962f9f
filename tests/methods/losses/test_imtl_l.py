"""The loss balance of IMTL: Σ (e^s L - s)."""

from __future__ import annotations

import math

import pytest
import torch
import torchjd.scalarization
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights
from mtlbench.balancing.rules.imtl import log_scaled
from tests.support.balancers import CONFLICT, context, rows


def made(tasks, name="imtl_l"):
    rule = make_balancer(name)
    rule.configure(tasks)
    return rule.double()


def train(rule, losses, steps, lr=0.1):
    optimiser = torch.optim.Adam(rule.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        rule.combine_losses(losses, context(losses)).backward()
        optimiser.step()


def test_the_minimum_is_minus_the_logarithm_of_the_loss():
    rule, losses = made(1), rows(4.0)
    train(rule, losses, 2000, lr=0.01)
    assert rule.log_weight.item() == pytest.approx(-math.log(4), abs=1e-6)
    assert rule.combine_losses(losses, context(losses)).item() == pytest.approx(2.386294, abs=1e-6)  # 1 + ln 4


def test_at_the_minimum_it_is_scale_invariant():
    rule, losses = made(3), rows(0.5, 1.0, 4.0)
    train(rule, losses, 1500, lr=0.02)
    found = loss_weights(rule.combine_losses, context(losses))[0]
    expected = make_balancer("scale_invariant", scale="raw")
    assert_close(found, loss_weights(expected.combine_losses, context(losses))[0], rtol=1e-5, atol=1e-5)


def test_value_and_gradients_by_hand():
    losses, s = rows(3.0, 0.5), rows(0.0, math.log(2)).requires_grad_()
    value = log_scaled(losses, s)
    value.backward()
    assert value.item() == pytest.approx(3 + 1 - math.log(2))
    assert_close(s.grad, rows(2.0, 0.0))  # e^s L - 1


def test_the_start_is_the_sum():
    assert_close(made(2).direction(rows(*CONFLICT), rows(3.0, 5.0)), rows(0.0, 1.0))
    assert_close(make_balancer("imtl_l").direction(torch.tensor(CONFLICT)), torch.tensor([0.0, 1.0]))
    assert_close(made(1).direction(rows([3.0, -4.0]), rows(7.0)), rows(3.0, -4.0))
    assert_close(made(3).direction(torch.zeros(3, 2).double()), rows(0.0, 0.0))


def test_weights_follow_the_parameter():
    rule, losses = made(2), rows(3.0, 5.0)
    with torch.no_grad():
        rule.log_weight.copy_(rows(math.log(3), -1.0))
    assert_close(loss_weights(rule.combine_losses, context(losses))[0], rows(3.0, math.exp(-1)))


def test_it_is_torchjd():
    losses = rows(0.2, 3.0, 7.0)
    rule, other = made(3), torchjd.scalarization.IMTLL(3).double()
    with torch.no_grad():
        rule.log_weight.copy_(rows(0.3, -1.0, 2.0))
        other.log_scale.copy_(rule.log_weight)
    ours, theirs = rule.combine_losses(losses, context(losses)), other(losses)
    assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    assert_close(rule.log_weight.grad, other.log_scale.grad)


def test_it_trains_like_uncertainty_weighting():
    one, other, losses = made(2), made(2, "uncertainty"), rows(0.3, 6.0)
    for rule in (one, other):
        train(rule, losses, 20)
    assert one.log_weight.abs().min() > 0.5
    assert_close(one.log_weight, -other.log_variance)


def test_an_absent_task_keeps_its_weight():
    rule, losses = made(3), rows(3.0, 0.5)
    rule.combine_losses(losses, context(losses, active=(0, 2))).backward()
    assert rule.log_weight.grad.tolist() == [2.0, 0.0, -0.5]


def test_tasks_may_change_places():
    rule, other, order = made(3), made(3), [2, 0, 1]
    with torch.no_grad():
        rule.log_weight.copy_(rows(0.1, -0.4, 2.0))
        other.log_weight.copy_(rule.log_weight[order])
    losses, gradients = rows(1.0, 2.0, 3.0), torch.arange(6.0).view(3, 2).double()
    assert_close(rule.direction(gradients, losses), other.direction(gradients[order], losses[order]))


def test_the_run_trains_it_without_weight_decay():
    from mtlbench.testing import toy_spec
    from mtlbench.training.build import build

    method, _ = build(toy_spec("imtl_l", steps=1))
    method.configure_model()
    groups = [g for g in method.parameter_groups() if any(p is method.balancer.log_weight for p in g["params"])]
    assert len(groups) == 1 and groups[0]["weight_decay"] == 0.0


def test_the_parameter_is_the_state():
    rule, other, losses = made(2), made(2), rows(0.3, 6.0)
    train(rule, losses, 3)
    other.load_state_dict(rule.state_dict())
    assert torch.equal(other.log_weight, rule.log_weight) and rule.log_weight.abs().min() > 0
