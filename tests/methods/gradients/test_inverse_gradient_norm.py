"""Weights in inverse proportion to gradient norms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, ORTHOGONAL, context, rows

NAME = "inverse_gradient_norm"


def gramian(*norms):
    return torch.diag(rows(*norms) ** 2)


def jacobians():
    generator = torch.Generator().manual_seed(0)
    for tasks in (2, 3, 8, 40):
        whole = torch.randn(tasks, 50, generator=generator, dtype=torch.float64)
        yield whole
        yield whole[:, :1] * whole[0]  # Of rank 1.
        yield torch.cat([whole, whole[:1]])  # One row twice.
        yield whole * 10 ** torch.linspace(-3, 3, tasks, dtype=torch.float64)[:, None]


def test_by_hand():
    rule = make_balancer(NAME)
    assert_close(rule.direction(rows(*ORTHOGONAL)), rows(4 / 3, 4 / 3))
    root = 2**0.5
    # Norms 1 and √2: weights 2 (√2, 1) / (1 + √2).
    expected = rows(2 * (root - 1) / (1 + root), 2 / (1 + root))
    assert_close(rule.direction(rows(*CONFLICT)), expected)
    assert_close(make_balancer(NAME, scale="mean").direction(rows(*CONFLICT)), expected / 2)
    assert_close(rule.direction(torch.tensor(CONFLICT)), expected.float())


def test_the_direction_is_that_of_the_sum_of_unit_gradients():
    for jacobian in jacobians():
        norms = jacobian.norm(dim=1)
        scale = len(jacobian) / (1 / norms).sum()
        expected = scale * (jacobian / norms[:, None]).sum(0)
        assert_close(make_balancer(NAME).direction(jacobian), expected, atol=1e-9 * scale.item(), rtol=0)
        weights = make_balancer(NAME).weights(jacobian @ jacobian.T)
        assert weights.sum().item() == pytest.approx(len(jacobian))
        lengths = (weights[:, None] * jacobian).norm(dim=1)
        assert_close(lengths, lengths[0].expand_as(lengths))


def test_the_unit_of_a_loss_does_not_matter():
    gradients = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).double()
    one, other = (make_balancer(NAME).direction(g) for g in (gradients, rows(1e3, 1.0, 1e-3)[:, None] * gradients))
    assert torch.cosine_similarity(one, other, 0).item() == pytest.approx(1)


def test_a_zero_gradient_has_no_weight():
    rule = make_balancer(NAME)
    assert_close(rule.weights(gramian(1.0, 0.0, 2.0)), rows(2.0, 0.0, 1.0))
    for beta in (0.0, 0.5):
        rule = make_balancer(NAME, beta=beta)
        assert_close(rule.weights(gramian(0.0, 0.0)), rows(0.0, 0.0))
        assert_close(rule.direction(torch.zeros(3, 2)), torch.zeros(2))


def test_order_and_one_task():
    jacobian, order = torch.randn(3, 5, generator=torch.Generator().manual_seed(2)).double(), [2, 0, 1]
    rule = make_balancer(NAME)
    turned = jacobian[order]
    assert_close(rule.weights(turned @ turned.T), rule.weights(jacobian @ jacobian.T)[order])
    for scale in ("sum", "mean"):
        assert_close(make_balancer(NAME, scale=scale).direction(rows([3.0, -4.0])), rows(3.0, -4.0))


def step(rule, norms, active=None):
    return rule.gradient_weights(gramian(*norms), context(torch.ones(len(norms)), active=active))


def made(tasks=2, **arguments):
    rule = make_balancer(NAME, **arguments)
    rule.configure(tasks)
    return rule.double()


def test_norms_are_smoothed():
    rule = made(beta=0.75)
    assert_close(step(rule, (1.0, 3.0)), rows(1.5, 0.5))  # The first norms as they are.
    # ¾ · 1 + ¼ · 5 = 2 and ¾ · 3 + ¼ · 7 = 4.
    assert_close(step(rule, (5.0, 7.0)), rows(4 / 3, 2 / 3))
    assert_close(rule.norms, rows(2.0, 4.0))


def test_without_memory_nothing_is_kept():
    rule = made()
    step(rule, (1.0, 3.0))
    assert rule.norms.isnan().all()
    assert_close(step(rule, (3.0, 1.0)), rows(0.5, 1.5))


def test_absent_and_vanished_gradients_leave_the_memory_alone():
    rule = made(3, beta=0.5)
    step(rule, (1.0, 3.0), active=(0, 2))
    assert rule.norms.tolist()[::2] == [1.0, 3.0] and rule.norms[1].isnan()
    weights = step(rule, (2.0, 4.0, 0.0))  # Smoothed: 1.5 and 4.
    assert_close(weights, 3 * rows(4.0, 1.5, 0.0) / 5.5)
    assert_close(rule.norms, rows(1.5, 4.0, 3.0))


def test_a_resumed_rule_continues_bit_for_bit():
    rule, other, fresh = (make_balancer(NAME, beta=0.9) for _ in range(3))
    for each in (rule, other, fresh):
        each.configure(2)  # Kept in float32, as in training.
    for norms in ((1.0, 3.0), (0.7, 0.1)):
        step(rule, norms)
    other.load_state_dict(copy.deepcopy(rule.state_dict()))
    expected = step(rule, (0.3, 0.9))
    assert torch.equal(step(other, (0.3, 0.9)), expected)
    assert not torch.allclose(step(fresh, (0.3, 0.9)), expected)
    assert not list(rule.parameters())


def test_what_is_refused():
    for beta in (-0.1, 1.0, float("nan")):
        with pytest.raises(MethodError, match="inverse_gradient_norm: beta must be in"):
            make_balancer(NAME, beta=beta)
    with pytest.raises(MethodError, match="Unknown scale 'raw'"):
        make_balancer(NAME, scale="raw")
