"""IGB: golden, the epoch that gives the base, absent tasks, state, scale and arguments."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from tests.support.balancers import context, rows


def made(base=(2.0, 4.0), **arguments):
    """Returns a rule that has seen two steps of epoch 1, with these means."""
    rule = make_balancer("igb", **{"scale": "raw", **arguments})
    rule.configure(len(base))
    for factor in (0.5, 1.5):
        rule.after_step(context(factor * rows(*base), epoch=rule.base_epoch))
    return rule


def weights(rule, losses, epoch=2, **changes):
    return loss_weights(rule.combine_losses, context(losses, epoch=epoch, **changes))[0]


def test_golden():
    found = weights(made(), rows(2.0, 2.0))
    assert_close(found, rows(1.244919, 0.755081) / 2, atol=1e-6, rtol=0)
    assert_close(weights(made(scale="sum"), rows(2.0, 2.0)), rows(1.244919, 0.755081), atol=1e-6, rtol=0)


def test_it_is_scale_invariant_until_the_base_is_known():
    rule = make_balancer("igb")
    for epoch in (0, 1):
        assert_close(rule.direction(torch.eye(2), torch.tensor([1.0, 3.0]), epoch=epoch), torch.tensor([1.5, 0.5]))
    assert_close(rule.sums, torch.tensor([0.0, 0.0])), "epoch 1 is noted at the end of its step"
    rule.end_step()
    assert_close(rule.sums, torch.tensor([1.0, 3.0]))
    assert rule.direction(torch.eye(2), torch.tensor([1.0, 1.0]), epoch=2)[0] > 1


def test_other_epochs_do_not_count():
    rule = made()
    for epoch in (0, 2, 3):
        rule.after_step(context(rows(9.0, 9.0), epoch=epoch))
    assert_close(rule.sums / rule.steps, torch.tensor([2.0, 4.0]))


def test_absent_tasks():
    rule = made((2.0, 4.0, 8.0))
    assert_close(weights(rule, rows(2.0, 2.0), active=(0, 1)), weights(made(), rows(2.0, 2.0)))
    fresh = make_balancer("igb", scale="raw")
    fresh.configure(3)
    fresh.after_step(context(rows(2.0, 4.0), active=(0, 2), epoch=1))
    # Task 1 has no base: its ratio is the mean of 1 and 1/2.
    wanted = 3 * torch.softmax(rows(1.0, 0.75, 0.5), 0) / rows(2.0, 5.0, 2.0)
    assert_close(weights(fresh, rows(2.0, 5.0, 2.0)), wanted)
    nothing = make_balancer("igb", scale="raw")
    nothing.configure(2)
    assert_close(weights(nothing, rows(2.0, 4.0)), rows(0.5, 0.25))


def test_state_is_in_the_checkpoint():
    one, other = made(), make_balancer("igb", scale="raw")
    other.configure(2)
    other.load_state_dict(one.state_dict())
    assert torch.equal(weights(one, rows(1.0, 3.0)), weights(other, rows(1.0, 3.0)))


def test_arguments_out_of_range():
    with pytest.raises(MethodError, match="igb: base_epoch must be at least 0. Found -1"):
        make_balancer("igb", base_epoch=-1)
