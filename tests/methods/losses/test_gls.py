"""Geometric loss strategy."""

from __future__ import annotations

import pytest
import torch
import torchjd.scalarization
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, context, rows


def made(losses, active=None, **arguments):
    """Returns weights and value."""
    rule = make_balancer("gls", **arguments)
    rule.configure(len(losses) if active is None else max(active) + 1)
    return loss_weights(rule.combine_losses, context(losses, active=active))


def test_by_hand():
    losses = rows(1.0, 4.0)
    weights, value = made(losses, scale="raw")
    assert value.item() == pytest.approx(2) and weights.tolist() == pytest.approx([1, 0.25])
    weights, value = made(losses)
    assert value.item() == pytest.approx(4) and weights.tolist() == pytest.approx([2, 0.5])
    # 2 · (1, 0) + 0.5 · (-1, 1)
    assert_close(make_balancer("gls").direction(rows(*CONFLICT), losses), rows(1.5, 0.5))


@pytest.mark.parametrize("tasks", [1, 2, 5, 40])
def test_equal_losses_have_equal_weights(tasks):
    losses = torch.full((tasks,), 0.3, dtype=torch.float64)
    assert_close(made(losses)[0], torch.ones(tasks).double())
    assert_close(made(losses, scale="raw")[0], torch.full((tasks,), 1 / tasks).double())


@pytest.mark.parametrize("tasks", [2, 3, 40])
def test_it_is_the_root_of_the_product(tasks):
    losses = torch.rand(tasks, generator=torch.Generator().manual_seed(tasks), dtype=torch.float64) + 0.1
    leaf = losses.clone().requires_grad_()
    value = leaf.prod() ** (1 / tasks)
    value.backward()
    found = made(losses, scale="raw")
    assert_close(found[1], value)
    assert_close(found[0], leaf.grad)
    assert_close(found[1], torchjd.scalarization.GeometricMean()(losses))


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_product_neither_overflows_nor_vanishes(factor):
    losses = torch.full((40,), factor)  # In float32 the product would be 0 or inf.
    weights, value = made(losses, scale="raw")
    assert value.item() == pytest.approx(factor, rel=1e-5)
    assert_close(weights, torch.full((40,), 1 / 40))


def test_a_unit_changes_the_length_alone():
    gradients, losses = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double(), rows(0.2, 1.0, 30.0)
    units = rows(1.0, 1000.0, 1.0)
    plain = make_balancer("gls").direction(gradients, losses)
    assert_close(make_balancer("gls").direction(units[:, None] * gradients, units * losses), 10 * plain)
    other = make_balancer("scale_invariant").direction(gradients, losses)
    assert torch.cosine_similarity(plain, other, 0).item() == pytest.approx(1)
    assert plain.norm() > other.norm()


def test_order_absent_tasks_and_one_task():
    losses, order = rows(0.2, 1.0, 30.0), [2, 0, 1]
    assert_close(made(losses[order])[0], made(losses)[0][order])
    assert made(rows(1.0, 4.0), active=(0, 2), scale="raw")[0].tolist() == pytest.approx([1, 0.25])
    for scale in ("sum", "raw"):
        assert_close(make_balancer("gls", scale=scale).direction(rows([3.0, -4.0]), rows(7.0)), rows(3.0, -4.0))
    assert_close(make_balancer("gls").direction(torch.zeros(3, 2), losses.float()), torch.zeros(2))


def test_what_is_refused():
    with pytest.raises(MethodError, match="must be above 0"):
        make_balancer("gls").direction(torch.eye(2), torch.tensor([-1.0, 1.0]))
    with pytest.raises(MethodError, match="gls: Unknown scale 'mean'.*raw, sum"):
        make_balancer("gls", scale="mean")
