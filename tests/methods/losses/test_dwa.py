"""Dynamic weight averaging."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from tests.support.balancers import context


def made(tasks=2, **arguments):
    rule = make_balancer("dwa", **arguments)
    rule.configure(tasks)
    return rule.double()


def run_epoch(rule, *steps, active=None):
    for losses in steps:
        rule.after_step(context(torch.tensor(losses, dtype=torch.float64), active=active))
    rule.epoch_end()


def test_weights_of_the_paper():
    rule = made()
    run_epoch(rule, (2.0, 2.0))
    run_epoch(rule, (2.0, 1.0))
    assert rule.task_weights().tolist() == pytest.approx([1.124353, 0.875647], abs=1e-6)
    assert rule.task_weights().sum().item() == pytest.approx(2)
    losses = torch.tensor([5.0, 7.0], dtype=torch.float64)
    assert_close(loss_weights(rule.combine_losses, context(losses))[0], rule.task_weights())


def test_the_first_two_epochs_are_uniform():
    rule = made()
    assert rule.task_weights().tolist() == [1.0, 1.0]
    run_epoch(rule, (4.0, 1.0))
    assert rule.task_weights().tolist() == [1.0, 1.0]
    run_epoch(rule, (1.0, 1.0))
    assert rule.task_weights()[0] < 1 < rule.task_weights()[1]


def test_an_epoch_is_the_mean_of_its_steps():
    rule, single = made(), made()
    run_epoch(rule, (1.0, 6.0), (3.0, 2.0))
    run_epoch(rule, (1.0, 1.0), (0.0, 3.0))
    run_epoch(single, (2.0, 4.0))
    run_epoch(single, (0.5, 2.0))
    assert_close(rule.task_weights(), single.task_weights())
    assert_close(rule.history, torch.tensor([[2.0, 4.0], [0.5, 2.0]], dtype=torch.float64))


def test_only_the_last_two_epochs_count():
    rule = made()
    for losses in ((9.0, 1.0), (2.0, 2.0), (2.0, 1.0)):
        run_epoch(rule, losses)
    assert rule.task_weights().tolist() == pytest.approx([1.124353, 0.875647], abs=1e-6)


def test_an_absent_task_counts_no_step():
    rule = made(3)
    run_epoch(rule, (2.0, 2.0, 2.0))
    rule.after_step(context(torch.tensor([1.0, 3.0]).double(), active=(0, 2)))
    run_epoch(rule, (1.0, 1.0, 5.0))
    assert_close(rule.history[1], torch.tensor([1.0, 1.0, 4.0]).double())
    run_epoch(rule, (1.0, 4.0), active=(0, 2))
    # Without a label in the whole epoch a task keeps r = 1.
    assert_close(rule.task_weights(), torch.ones(3).double())
    losses = torch.ones(2).double()
    assert len(loss_weights(rule.combine_losses, context(losses, active=(0, 2)))[0]) == 2


def test_temperature_and_order():
    hot, cold, turned = made(temperature=1e6), made(temperature=1.0), made(temperature=1.0)
    for rule in (hot, cold):
        run_epoch(rule, (2.0, 2.0))
        run_epoch(rule, (2.0, 1.0))
    run_epoch(turned, (2.0, 2.0))
    run_epoch(turned, (1.0, 2.0))
    assert_close(hot.task_weights(), torch.ones(2).double(), atol=1e-6, rtol=0)
    assert cold.task_weights()[0].item() == pytest.approx(2 / (1 + 2.718281828**-0.5))
    assert_close(turned.task_weights(), cold.task_weights().flip(0))


def test_state_is_in_the_checkpoint():
    rule, other = made(), made()
    run_epoch(rule, (2.0, 2.0))
    run_epoch(rule, (2.0, 1.0))
    rule.after_step(context(torch.tensor([3.0, 4.0]).double()))
    other.load_state_dict(rule.state_dict())
    for each in (rule, other):
        run_epoch(each, (1.0, 9.0))
    assert torch.equal(rule.task_weights(), other.task_weights())
    assert not list(rule.parameters())


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_out_of_range_is_refused(temperature):
    with pytest.raises(MethodError, match="dwa: temperature must be above 0"):
        make_balancer("dwa", temperature=temperature)
