"""GradVac per tensor: every tensor on its own, one order for all, and state whose size the first step tells."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.rules.gradvac import orders
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, context, draws, rows
from tests.support.jacobians import KINDS, jacobian
from tests.support.vaccine_reference import by_vectors

SIZES = (7, 1, 30, 22)


def made(tasks=2, **arguments):
    rule = make_balancer("gradvac_layer", **arguments)
    rule.configure(tasks)
    return rule


def combine(rule, gradients, seed=0, active=None, sizes=SIZES):
    ctx = context(torch.ones(len(gradients)), seed=seed, active=active)
    return rule.combine_gradients(gradients, replace(ctx, sizes=sizes, generator=draws(seed)))


@pytest.mark.parametrize("tasks", [2, 3, 7, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_corrected_alone(kind, tasks):
    rule, targets = made(tasks, beta=0.3), torch.zeros(len(SIZES), tasks, tasks, dtype=torch.float64)
    for step in range(3):
        gradients = jacobian(kind, tasks, step)
        gradients[0, :7] = 0  # A task that does not reach a tensor.
        order = orders(tasks, draws(step))
        parts = zip(gradients.split(SIZES, 1), targets, strict=True)
        expected = torch.cat([by_vectors(part, own, 0.3, order) for part, own in parts])
        found = combine(rule, gradients, step)
        assert_close(found, expected, rtol=1e-6, atol=1e-7 * float(gradients.norm()))
        assert_close(rule.memory, targets, rtol=0, atol=1e-6)


def test_one_tensor_is_gradvac():
    rule, whole, by_hand = made(3), make_balancer("gradvac"), made(3)
    whole.configure(3)
    whole.double()
    for step in range(4):
        gradients = jacobian("plain", 3, step, columns=5)
        expected = whole.direction(gradients, seed=step, step=0)
        assert_close(combine(rule, gradients, step, sizes=(5,)), expected)
        assert_close(by_hand.direction(gradients, seed=step, step=0), expected)


def test_golden_in_every_tensor():
    # Twice the same conflict, the second time in other units: PCGrad's (0.5, 1.5) in each.
    gradients = torch.cat([rows(*CONFLICT), 1e3 * rows(*CONFLICT)], 1)
    assert_close(combine(made(), gradients, sizes=(2, 2)), rows(0.5, 1.5, 500.0, 1500.0))


def test_degenerate_gradients():
    assert_close(combine(made(3), torch.zeros(3, 60)), torch.zeros(60))
    alone = jacobian("plain", 1, 0)
    assert_close(combine(made(1), alone), alone[0])


def test_absent_tasks_keep_their_similarities():
    rule, pair = made(3), made(2)
    combine(rule, jacobian("plain", 3, 0))
    kept = rule.memory.clone()
    pair.memory = kept[:, ::2, ::2].clone()
    gradients = jacobian("plain", 2, 1)
    assert_close(combine(rule, gradients, active=(0, 2)), combine(pair, gradients))
    assert torch.equal(rule.memory[:, 1], kept[:, 1]) and torch.equal(rule.memory[:, :, 1], kept[:, :, 1])
    assert_close(rule.memory[:, ::2, ::2], pair.memory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_is_in_the_checkpoint(dtype):
    rule, other = made(3), made(3)
    for step in range(3):
        combine(rule, jacobian("plain", 3, step).to(dtype), step)
    other.load_state_dict(rule.state_dict())
    for step in range(3, 6):
        gradients = jacobian("plain", 3, step).to(dtype)
        before = gradients.clone()
        found = combine(rule, gradients, step)
        assert found.dtype == dtype and torch.equal(found, combine(other, gradients, step))
        assert torch.equal(gradients, before)


def test_scale_and_arguments():
    gradients = rows(*CONFLICT)
    assert_close(made(scale="mean").direction(gradients), made().direction(gradients) / 2)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(MethodError, match="gradvac_layer: beta must be in"):
            make_balancer("gradvac_layer", beta=wrong)
