"""Uncertainty weighting, on sum scale: 2 · Σ (½ e^-s L + ½ s)."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from tests.support.balancers import context


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
    from mtlbench.methods.losses.uncertainty import Uncertainty
    from mtlbench.testing import toy_spec
    from mtlbench.training.build import build

    method, _ = build(toy_spec("uncertainty", steps=1))
    method.configure_model()
    assert isinstance(method.balancer, Uncertainty)
    groups = [g for g in method.parameter_groups() if any(p is method.balancer.log_variance for p in g["params"])]
    assert len(groups) == 1 and groups[0]["weight_decay"] == 0.0


def test_the_classification_form():
    rule, losses = made(2, forms=["regression", "classification"]), torch.tensor([4.0, 4.0]).double()
    assert loss_weights(rule.combine_losses, context(losses))[0].tolist() == [1.0, 2.0]
    with torch.no_grad():
        rule.log_variance.copy_(torch.tensor([math.log(4), math.log(8)], dtype=torch.float64))
    value = rule.combine_losses(losses, context(losses))
    value.backward()
    # The minima: ½ e^-s L + ½ s at ln L, e^-s L + ½ s at ln 2L, there ½ (1 + ln 4) and ½ (1 + ln 8).
    assert_close(rule.log_variance.grad, torch.zeros(2).double())
    assert value.item() / 2 == pytest.approx(1.193147 + 1.539721, abs=1e-6)


def test_forms_go_with_their_tasks():
    rule, losses = made(3, forms=["classification", "regression", "classification"]), torch.ones(2).double()
    for active, expected in (((0, 1), [2.0, 1.0]), ((1, 2), [1.0, 2.0])):
        assert loss_weights(rule.combine_losses, context(losses, active=active))[0].tolist() == expected


def test_without_forms_every_task_has_the_regression_form():
    plain, named = made(2, initial=0.3), made(2, initial=0.3, forms=["regression", "regression"])
    losses = torch.tensor([3.0, 0.7]).double()
    found = [loss_weights(rule.combine_losses, context(losses)) for rule in (plain, named)]
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert list(plain.state_dict()) == ["log_variance"], "checkpoints are as they were"


def test_what_is_refused():
    with pytest.raises(MethodError, match="Unknown form 'clasification'. Did you mean 'classification'"):
        make_balancer("uncertainty", forms=["clasification", "regression"])
    for forms in ("regression", 3):
        with pytest.raises(MethodError, match="forms must be a list"):
            make_balancer("uncertainty", forms=forms)
    rule = make_balancer("uncertainty", forms=["regression"])
    for _ in range(2):
        with pytest.raises(MethodError, match="Found 1 for 2 tasks"):
            rule.direction(torch.eye(2))
    for initial in (float("nan"), float("inf")):
        with pytest.raises(MethodError, match="initial must be finite"):
            make_balancer("uncertainty", initial=initial)
