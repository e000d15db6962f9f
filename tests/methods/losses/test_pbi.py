"""PBI: golden, invariants, preferences of absent tasks, scale and arguments."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from tests.support.balancers import context, rows


def weights(rule, losses, tasks=None, active=None):
    rule.configure(tasks or len(losses))
    return loss_weights(rule.combine_losses, context(losses, active=active))


def test_golden():
    rule = make_balancer("pbi", weights=[0.5, 0.5], scale="raw")
    found, value = weights(rule, rows(1.0, 2.0))
    assert_close(value, torch.tensor(5.656854).double(), atol=1e-6, rtol=0)
    assert_close(found, rows(-2.828427, 4.242641), atol=1e-6, rtol=0)


def test_the_derivative_along_the_preference_is_one_whatever_the_penalty():
    for theta in (0.0, 1.0, 5.0):
        rule = make_balancer("pbi", theta=theta, weights=[1.0, 2.0, 2.0], scale="raw")
        found, _ = weights(rule, rows(0.3, 1.0, 4.0))
        assert_close(found @ rows(1.0, 2.0, 2.0) / 3, torch.tensor(1.0).double())
    rule = make_balancer("pbi", theta=0.0, weights=[1.0, 2.0, 2.0])
    assert_close(weights(rule, rows(0.3, 1.0, 4.0))[0], 3 * rows(0.2, 0.4, 0.4))


def test_losses_in_the_preferred_ratio_have_weights_of_sum_t():
    rule = make_balancer("pbi", weights=[1.0, 2.0, 4.0], reference=[0.5, 0.5, 0.5])
    assert_close(weights(rule, rows(1.5, 2.5, 4.5))[0], 3 / 7 * rows(1.0, 2.0, 4.0), atol=1e-5, rtol=0)


def test_preferences_of_absent_tasks_are_left_out():
    rule = make_balancer("pbi", weights=[1.0, 5.0, 2.0], reference=[0.0, 9.0, 1.0])
    other = make_balancer("pbi", weights=[1.0, 2.0], reference=[0.0, 1.0])
    found = weights(rule, rows(0.7, 3.0), 3, (0, 2))[0]
    assert_close(found, weights(other, rows(0.7, 3.0))[0])


def test_one_task_has_weight_one():
    assert_close(make_balancer("pbi").direction(rows([3.0, -4.0]), rows(2.0)), rows(3.0, -4.0), atol=1e-5, rtol=0)


def test_arguments_out_of_range():
    wrong = [("theta", -1.0), ("theta", float("nan")), ("weights", [1.0, 0.0]), ("weights", ["a", "b"])]
    for name, value in [*wrong, ("reference", [float("inf"), 0.0])]:
        with pytest.raises(MethodError, match=f"pbi: {name} must be"):
            make_balancer("pbi", **{name: value})
    for name in ("weights", "reference"):
        with pytest.raises(MethodError, match=f"pbi: {name} must hold one number per task.*Found 2 for 3"):
            make_balancer("pbi", **{name: [1.0, 2.0]}).configure(3)
