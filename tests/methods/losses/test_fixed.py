"""Fixed weights: used as they are, one per task of the run."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, ORTHOGONAL, context, rows


def test_the_direction_is_the_weighted_sum():
    rule = make_balancer("fixed", weights=[0.5, 2])
    assert_close(rule.direction(rows(*CONFLICT)), rows(-1.5, 2.0))
    assert_close(rule.direction(rows(*ORTHOGONAL)), rows(0.5, 4.0))
    assert_close(rule.direction(torch.tensor(CONFLICT)), torch.tensor([-1.5, 2.0]))


def test_without_weights_it_is_the_sum():
    assert_close(make_balancer("fixed").direction(rows(*CONFLICT)), rows(0.0, 1.0))


def test_nothing_is_rescaled():
    losses = rows(7.0, 1e-3)
    for weights in ([10.0, 30.0], [1e-3, 0.0], [1.0, 1.0]):
        rule = make_balancer("fixed", weights=weights)
        rule.configure(2)
        found, value = loss_weights(rule.combine_losses, context(losses))
        assert_close(found, rows(*weights))
        assert value.item() == pytest.approx(7 * weights[0] + 1e-3 * weights[1])


def test_weights_go_with_their_tasks():
    gradients = torch.arange(12.0).view(4, 3).square()
    weights, order = [1.0, 2.0, 3.0, 0.0], [2, 0, 3, 1]
    turned = make_balancer("fixed", weights=[weights[i] for i in order])
    assert_close(turned.direction(gradients[order]), make_balancer("fixed", weights=weights).direction(gradients))


def test_an_absent_task_leaves_the_others_their_weights():
    rule = make_balancer("fixed", weights=[1.0, 2.0, 3.0])
    rule.configure(3)
    losses = rows(5.0, 7.0)
    assert_close(loss_weights(rule.combine_losses, context(losses, active=(0, 2)))[0], rows(1.0, 3.0))


def test_another_number_of_tasks_is_refused_every_time():
    rule = make_balancer("fixed", weights=[1.0, 2.0])
    for _ in range(2):
        with pytest.raises(MethodError, match="Found 2 for 3 tasks"):
            rule.direction(torch.eye(3))
    with pytest.raises(MethodError, match="Found 2 for 1 task[.]"):
        rule.configure(1)
    assert_close(rule.direction(torch.eye(2)), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    "weights", [[1.0, -0.5], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [], ["a", 1.0], "11", 2.0, [[1.0]]]
)
def test_weights_out_of_range(weights):
    with pytest.raises(MethodError, match="fixed: weights must be"):
        make_balancer("fixed", weights=weights)


def test_neither_parameters_nor_state():
    rule = make_balancer("fixed", weights=[1.0, 2.0])
    rule.configure(2)
    assert not list(rule.parameters()) and not rule.state_dict()


def test_a_suite_may_give_weights():
    from mtlbench.testing import toy_spec
    from mtlbench.training.build import build

    method, _ = build(toy_spec("fixed", steps=1, arguments={"weights": [1, 2, 3, 4]}))
    assert method.balancer.task_weights.tolist() == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(MethodError, match="Found 3 for 4 tasks"):
        build(toy_spec("fixed", steps=1, arguments={"weights": [1, 2, 3]}))
