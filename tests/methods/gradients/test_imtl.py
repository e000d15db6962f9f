"""IMTL: learned loss weights and equal projections of the weighted losses' gradients."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights
from tests.support.balancers import CONFLICT, context, rows
from tests.support.jacobians import jacobian, unit


def made(tasks, values=None, **arguments):
    rule = make_balancer("imtl", **{"scale": "mean", **arguments})
    rule.configure(tasks)
    if values is not None:
        with torch.no_grad():
            rule.log_weight.copy_(torch.tensor(values))
    return rule.double()


def test_the_start_is_imtl_g():
    assert_close(made(2).direction(rows(*CONFLICT)), rows(0.171573, 0.414214), atol=1e-6, rtol=0)
    gradients = jacobian("plain", 5)
    assert_close(made(5).direction(gradients), make_balancer("imtl_g", scale="mean").direction(gradients))
    assert_close(made(5, scale="sum").direction(gradients), 5 * made(5).direction(gradients))


def test_the_minimum_makes_every_scaled_loss_one():
    rule, losses = made(1), torch.tensor([4.0]).double()
    optimiser = torch.optim.LBFGS(rule.parameters(), max_iter=100, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimiser.zero_grad()
        value = rule.combine_losses(losses, context(losses))
        value.backward()
        return value

    optimiser.step(closure)
    assert rule.log_weight.item() == pytest.approx(-1.386294, abs=1e-6)
    assert closure().item() == pytest.approx(2.386294, abs=1e-6)


def test_gradients_are_those_of_the_weighted_losses():
    values, losses = [0.5, -1.0, 2.0], rows(3.0, 0.5, 1.0)
    rule, gradients = made(3, values), jacobian("plain", 3)
    factors = torch.tensor(values).double().exp()
    assert_close(loss_weights(rule.combine_losses, context(losses))[0], factors)
    scaled = factors[:, None] * gradients
    expected = make_balancer("imtl_g", scale="mean").direction(scaled)
    direction = rule.direction(gradients, losses)
    assert_close(direction, expected)
    # Projections stay equal, and the direction is that of the unweighted losses.
    projections = unit(gradients) @ direction
    assert_close(projections, projections[0].expand(3))
    assert torch.cosine_similarity(direction, made(3).direction(gradients), dim=0).item() == pytest.approx(1)


def test_the_logarithms_follow_the_losses_alone():
    rule, losses = made(3, [0.0, 9.0, 0.5]), rows(3.0, 0.5)
    rule.combine_losses(losses, context(losses, active=(0, 2))).backward()
    # e^s L - 1, nothing for the absent task.
    assert_close(rule.log_weight.grad, rows(2.0, 0.0, 0.5 * 1.6487212707 - 1), atol=1e-9, rtol=0)


def test_one_task_and_no_gradient():
    assert_close(made(1).direction(rows([3.0, -4.0]), rows(7.0)), rows(3.0, -4.0))
    assert_close(made(3).direction(torch.zeros(3, 2).double()), rows(0.0, 0.0))


def test_tasks_may_change_places():
    order, values = [2, 0, 1], [0.1, -0.4, 2.0]
    gradients, losses = jacobian("spread", 3), rows(1.0, 2.0, 3.0)
    other = made(3, [values[i] for i in order])
    assert_close(made(3, values).direction(gradients, losses), other.direction(gradients[order], losses[order]))


def test_a_resumed_rule_has_its_logarithms():
    rule, other = made(3, [0.1, -0.4, 2.0]), made(3)
    other.load_state_dict(rule.state_dict())
    gradients = jacobian("plain", 3)
    assert torch.equal(rule.direction(gradients), other.direction(gradients))


def test_it_is_trained_without_weight_decay():
    from mtlbench.testing import toy_spec
    from mtlbench.training.build import build

    method, _ = build(toy_spec("imtl", steps=1))
    method.configure_model()
    groups = [g for g in method.parameter_groups() if any(p is method.balancer.log_weight for p in g["params"])]
    assert len(groups) == 1 and groups[0]["weight_decay"] == 0.0
