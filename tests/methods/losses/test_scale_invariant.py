"""Scale-invariant scalarisation: weights in inverse proportion to the losses."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, context, rows


def weights(losses, active=None, **arguments):
    rule = make_balancer("scale_invariant", **arguments)
    rule.configure(len(losses) if active is None else max(active) + 1)
    return loss_weights(rule.combine_losses, context(losses, active=active))[0]


def test_by_hand():
    losses = rows(1.0, 4.0)
    assert_close(weights(losses, scale="raw"), rows(1.0, 0.25))
    assert_close(weights(losses), rows(1.6, 0.4))  # 2 / 1.25 times those.
    # 1.6 · (1, 0) + 0.4 · (-1, 1)
    assert_close(make_balancer("scale_invariant").direction(rows(*CONFLICT), losses), rows(1.2, 0.4))


def test_the_raw_value_is_the_logarithm_of_the_product():
    rule, losses = make_balancer("scale_invariant", scale="raw"), rows(2.0, 3.0, 0.5)
    assert rule.combine_losses(losses, context(losses)).item() == pytest.approx(1.098612, abs=1e-6)  # ln 3


def test_the_unit_of_a_loss_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    for tasks in (2, 3, 7, 40):
        gradients = torch.randn(tasks, 5, generator=generator, dtype=torch.float64)
        losses = torch.rand(tasks, generator=generator, dtype=torch.float64) + 0.1
        units = 10 ** torch.empty(tasks, dtype=torch.float64).uniform_(-3, 3, generator=generator)
        raw, summed = make_balancer("scale_invariant", scale="raw"), make_balancer("scale_invariant")
        expected = raw.direction(gradients, losses)
        assert_close(raw.direction(units[:, None] * gradients, units * losses), expected)
        for found in (
            summed.direction(gradients, losses),
            summed.direction(units[:, None] * gradients, units * losses),
        ):
            assert torch.cosine_similarity(found, expected, 0).item() == pytest.approx(1)


@pytest.mark.parametrize("tasks", [2, 5, 40])
def test_weights_sum_to_the_number_of_tasks(tasks):
    losses = 10 ** torch.linspace(-3, 3, tasks, dtype=torch.float64)
    found = weights(losses)
    assert found.sum().item() == pytest.approx(tasks)
    assert_close(found * losses, (found * losses)[0].expand(tasks))
    assert_close(weights(torch.full((tasks,), 0.3)), torch.ones(tasks))


def test_it_is_where_famo_starts():
    gradients, losses = torch.arange(-6.0, 6.0).view(3, 4).double(), rows(0.2, 1.0, 30.0)
    ours, famo = (make_balancer(name).direction(gradients, losses) for name in ("scale_invariant", "famo"))
    assert_close(ours, famo, rtol=1e-6, atol=1e-6)


def test_order_absent_tasks_and_one_task():
    losses, order = rows(0.2, 1.0, 30.0), [2, 0, 1]
    assert_close(weights(losses[order]), weights(losses)[order])
    assert_close(weights(rows(1.0, 4.0), active=(0, 2)), rows(1.6, 0.4))
    assert_close(make_balancer("scale_invariant").direction(rows([3.0, -4.0]), rows(7.0)), rows(3.0, -4.0))
    assert_close(make_balancer("scale_invariant", scale="raw").direction(rows([3.0, -4.0]), rows(2.0)), rows(1.5, -2.0))
    assert_close(make_balancer("scale_invariant").direction(torch.zeros(3, 2), losses.float()), torch.zeros(2))


def test_what_is_refused():
    with pytest.raises(MethodError, match="must be above 0"):
        make_balancer("scale_invariant").direction(torch.eye(2), torch.tensor([0.0, 1.0]))
    with pytest.raises(MethodError, match="scale_invariant: Unknown scale 'mean'.*raw, sum"):
        make_balancer("scale_invariant", scale="mean")
