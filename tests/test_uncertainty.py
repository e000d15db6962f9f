"""Uncertainty weighting, on sum scale: 2 · Σ (½ e^-s L + ½ s)."""

from __future__ import annotations

import math

import pytest
import torch
from balancers import context
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights


def made(tasks, **arguments):
    rule = make_balancer("uncertainty", **arguments)
    rule.configure(tasks)
    return rule.double()


def test_the_minimum_is_the_logarithm_of_the_loss():
    rule = made(1)
    losses = torch.tensor([4.0], dtype=torch.float64)
    optimiser = torch.optim.LBFGS(rule.parameters(), max_iter=100, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimiser.zero_grad()
        value = rule.combine_losses(losses, context(losses))
        value.backward()
        return value

    optimiser.step(closure)
    assert rule.log_variance.item() == pytest.approx(math.log(4), abs=1e-6)
    # ½ (1 + ln 4) = 1.193147; sum scale doubles it.
    assert closure().item() / 2 == pytest.approx(1.193147, abs=1e-6)


def test_weights_are_one_at_the_start_and_the_precision_later():
    rule = made(2)
    losses = torch.tensor([3.0, 5.0], dtype=torch.float64)
    assert loss_weights(rule.combine_losses, context(losses))[0].tolist() == [1.0, 1.0]
    with torch.no_grad():
        rule.log_variance.copy_(torch.tensor([0.0, math.log(2)]))
    assert_close(loss_weights(rule.combine_losses, context(losses))[0], torch.tensor([1.0, 0.5], dtype=torch.float64))


def test_the_gradient_of_the_log_variance():
    rule = made(2)
    losses = torch.tensor([3.0, 0.5], dtype=torch.float64)
    rule.combine_losses(losses, context(losses)).backward()
    assert_close(rule.log_variance.grad, torch.tensor([-2.0, 0.5], dtype=torch.float64))  # 1 - L


def test_an_absent_task_keeps_its_log_variance():
    rule = made(3)
    losses = torch.tensor([3.0, 0.5], dtype=torch.float64)
    rule.combine_losses(losses, context(losses, active=(0, 2))).backward()
    assert rule.log_variance.grad.tolist() == [-2.0, 0.0, 0.5]


def test_the_start_is_an_option():
    rule = made(2, initial=-0.5)
    losses = torch.ones(2, dtype=torch.float64)
    weights = loss_weights(rule.combine_losses, context(losses))[0]
    assert_close(weights, torch.full((2,), math.exp(0.5), dtype=torch.float64))


def test_tasks_may_change_places():
    rule, other = made(3), made(3)
    order = [2, 0, 1]
    with torch.no_grad():
        rule.log_variance.copy_(torch.tensor([0.1, -0.4, 2.0]))
        other.log_variance.copy_(rule.log_variance[order])
    losses, rows = torch.tensor([1.0, 2.0, 3.0]).double(), torch.arange(6.0).view(3, 2).double()
    assert_close(rule.direction(rows, losses), other.direction(rows[order], losses[order]))
    assert_close(rule.direction(torch.zeros(3, 2).double(), losses), torch.zeros(2).double())


def test_it_is_trained_without_weight_decay():
    from mtlbench.methods.uncertainty import Uncertainty
    from mtlbench.run import build
    from mtlbench.testing import toy_spec

    method, _ = build(toy_spec("uncertainty", steps=1))
    method.configure_model()
    assert isinstance(method.balancer, Uncertainty)
    groups = [g for g in method.parameter_groups() if any(p is method.balancer.log_variance for p in g["params"])]
    assert len(groups) == 1 and groups[0]["weight_decay"] == 0.0
