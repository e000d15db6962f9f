"""CR-MOGM: golden, agreement with TorchJD around every wrapped rule, absent tasks and state."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torchjd.aggregation import CRMOGMWeighting

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from mtlbench.methods.gradients.cr_mogm import RULES
from tests.support.balancers import CONFLICT, ORTHOGONAL, context, gramian_of, rows
from tests.support.jacobians import jacobian


def test_golden():
    # MGDA's weights of the two matrices are (.6, .4) and (.8, .2).
    rule = make_balancer("cr_mogm", scale="mean")
    assert_close(rule.weights(gramian_of(rows(*CONFLICT))), rows(0.6, 0.4))
    assert_close(rule.weights(gramian_of(rows(*ORTHOGONAL))), rows(0.62, 0.38))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("scale", ["sum", "mean"])
def test_it_is_torchjd_around_the_same_rule(name, scale):
    inner, rule = make_balancer(name, scale=scale), make_balancer("cr_mogm", rule=name, alpha=0.7, scale=scale)

    class Inner(torch.nn.Module):
        def forward(self, gramian):
            return inner.weights(gramian, seed=2)

    theirs = CRMOGMWeighting(Inner(), alpha=0.7)
    for step in range(4):
        gramian = gramian_of(jacobian("plain", 3, step))
        assert_close(rule.weights(gramian, seed=2), theirs(gramian))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_of_alpha(alpha):
    rule = make_balancer("cr_mogm", alpha=alpha, scale="mean")
    first, last = (rule.weights(gramian_of(rows(*g))) for g in (CONFLICT, ORTHOGONAL))
    assert_close(last, first if alpha else rows(0.8, 0.2))


def test_absent_tasks_keep_their_weight():
    rule = make_balancer("cr_mogm", alpha=0.5, scale="mean")
    rule.configure(3)
    ctx = context(torch.ones(2).double(), active=(0, 2))
    assert_close(rule.gradient_weights(gramian_of(rows(*CONFLICT)), ctx), rows(0.6, 0.4))
    assert rule.smoothed[1].isnan()
    ctx = context(torch.ones(2).double(), active=(1, 2))
    # Task 1 starts at its first weight, .8; task 2 moves from .4 half of the way to .2.
    assert_close(rule.gradient_weights(gramian_of(rows(*ORTHOGONAL)), ctx), rows(0.8, 0.3))
    assert_close(rule.smoothed, rows(0.6, 0.8, 0.3))


def test_state_is_in_the_checkpoint():
    one, other = (make_balancer("cr_mogm", rule="cagrad") for _ in range(2))
    for step in range(3):
        one.weights(gramian_of(jacobian("plain", 3, step)))
    other.configure(3)
    other.load_state_dict(one.state_dict())
    gramian = gramian_of(jacobian("plain", 3, 7))
    assert torch.equal(one.weights(gramian), other.weights(gramian))


def test_arguments_out_of_range():
    with pytest.raises(MethodError, match="alpha must be in"):
        make_balancer("cr_mogm", alpha=1.1)
    with pytest.raises(MethodError, match="cr_mogm: .*gradnorm"):
        make_balancer("cr_mogm", rule="gradnorm")
