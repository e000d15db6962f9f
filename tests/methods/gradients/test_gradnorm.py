"""GradNorm: targets and slopes, its optimiser, the order of a step, positivity, absent tasks, and state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import context, rows


def made(tasks, **arguments):
    rule = make_balancer("gradnorm", **arguments)
    rule.configure(tasks)
    return rule.double()


def step(rule, norms, losses, active=None):
    """Takes one step of the run for gradients of these norms; returns the weights that it used."""
    ctx = context(torch.tensor(losses).double(), active=active)
    weights = rule.gradient_weights(torch.diag(torch.tensor(norms).double() ** 2), ctx)
    rule.after_step(ctx)
    return weights


def test_targets_of_the_first_step():
    # Norms (1, 3), r = 1: targets (2, 2), slopes (-1, 3). SGD at 0.1 gives (1.1, 0.7), of which the sum is 1.8.
    rule = made(2, optimiser="sgd", lr=0.1)
    assert step(rule, (1.0, 3.0), (5.0, 7.0)).tolist() == [1.0, 1.0]
    assert_close(rule.task_weights, rows(1.1, 0.7) * 2 / 1.8)
    # Adam's first step has the length of the rate, whatever the slope.
    rule = made(2)
    step(rule, (1.0, 3.0), (5.0, 7.0))
    assert_close(rule.task_weights, rows(1.025, 0.975), rtol=0, atol=1e-6)


def test_weights_of_a_step_are_those_before_it():
    rule = made(2, lr=0.1)
    step(rule, (1.0, 3.0), (1.0, 1.0))
    before = rule.task_weights.clone()
    assert_close(step(rule, (1.0, 3.0), (1.0, 1.0)), before)
    assert not torch.equal(rule.task_weights, before)


def test_a_slow_task_gains_weight():
    # Equal norms; the loss of the second task stays: r = (0.5, 1) / 0.75, targets (r^α) below and above 1.
    rule = made(2, optimiser="sgd", lr=0.1, alpha=1.0)
    step(rule, (1.0, 1.0), (4.0, 9.0))
    assert_close(rule.task_weights, rows(1.0, 1.0))
    step(rule, (1.0, 1.0), (2.0, 9.0))
    assert_close(rule.task_weights, rows(0.9, 1.1))
    # Without α only norms count.
    rule = made(2, optimiser="sgd", lr=0.1, alpha=0.0)
    for losses in ((4.0, 9.0), (2.0, 9.0)):
        step(rule, (1.0, 1.0), losses)
    assert_close(rule.task_weights, rows(1.0, 1.0))


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_it_is_the_gradient_of_the_paper_in_the_optimiser_of_torch(name):
    generator = torch.Generator().manual_seed(0)
    rule = made(4, optimiser=name, lr=0.01)
    w = torch.ones(4, dtype=torch.float64, requires_grad=True)
    optimiser = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name]([w], lr=0.01)
    initial = None
    for _ in range(12):
        norms, losses = torch.rand(2, 4, generator=generator, dtype=torch.float64).add(0.1)
        initial = losses if initial is None else initial
        rate = (losses / initial) / (losses / initial).mean()
        target = ((w * norms).mean() * rate**1.5).detach()
        optimiser.zero_grad()
        (w * norms - target).abs().sum().backward()
        optimiser.step()
        with torch.no_grad():
            w *= 4 / w.sum()
        step(rule, norms.tolist(), losses.tolist())
        assert_close(rule.task_weights, w.detach())
    assert (rule.task_weights - 1).abs().max() > 0.02


def test_norms_become_equal():
    rule = made(3, lr=0.01)
    norms = torch.tensor([1.0, 2.0, 4.0]).double()
    for _ in range(400):
        step(rule, norms.tolist(), (1.0, 1.0, 1.0))
    # w ∝ 1 / n, Σ w = 3: (12, 6, 3) / 7.
    assert_close(rule.task_weights, rows(12.0, 6.0, 3.0) / 7, rtol=0, atol=0.05)


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_weights_stay_positive_and_sum_to_the_number_of_tasks(optimiser):
    rule = made(3, optimiser=optimiser, lr=5.0)
    for turn in range(20):
        weights = step(rule, [(1e-3, 1.0, 1e3), (1e3, 0.0, 1.0)][turn % 2], (1.0, 2.0, 3.0 + turn))
        for each in (weights, rule.task_weights):
            assert (each > 0).all() and each.sum().item() == pytest.approx(3)


def test_absent_tasks_rest_and_the_others_share():
    rule, alone = made(3, lr=0.1), made(2, lr=0.1)
    step(rule, (1.0, 6.0, 1.0), (1.0, 1.0, 1.0))  # Leaves the other two with more than 2 of 3.
    kept, state = rule.task_weights.clone(), copy.deepcopy(rule.get_extra_state()["state"][1])
    for _ in range(3):
        weights = step(rule, (1.0, 3.0), (1.0, 1.0), active=(0, 2))
        assert weights.sum().item() == pytest.approx(2)
    assert kept[1] < 0.95 and rule.task_weights[1] == kept[1] and rule.task_weights.sum().item() == pytest.approx(3)
    assert all(torch.equal(value, rule.get_extra_state()["state"][1][key]) for key, value in state.items())
    assert rule.task_weights[0] > kept[0] and rule.task_weights[2] < kept[2]
    # A task that was absent from the start changes nothing for the others.
    rule = made(3, lr=0.1)
    for _ in range(3):
        assert_close(step(rule, (1.0, 3.0), (1.0, 2.0), active=(0, 2)), step(alone, (1.0, 3.0), (1.0, 2.0)))


def test_the_first_loss_is_that_of_the_first_label():
    rule = made(3)
    step(rule, (1.0, 1.0), (2.0, 3.0), active=(0, 2))
    assert rule.initial[[0, 2]].tolist() == [2.0, 3.0] and rule.initial[1].isnan()
    step(rule, (1.0, 1.0, 1.0), (5.0, 7.0, 9.0))
    assert rule.initial.tolist() == [2.0, 7.0, 3.0]


def test_a_micro_batch_that_lacks_a_task():
    rule = made(2, optimiser="sgd", lr=0.1)
    norms = torch.diag(rows(1.0, 9.0))
    rule.gradient_weights(norms, context(rows(1.0, 1.0)))
    rule.gradient_weights(norms[1:, 1:], context(rows(1.0), active=(1,)))
    rule.after_step(context(rows(1.0, 2.0)))
    assert rule.task_weights.tolist() == [1.0, 1.0] and rule.initial.tolist() == [1.0, 2.0]
    # No gradient is seen in the last of these steps.
    rule.gradient_weights(norms, context(rows(1.0, 2.0)))
    rule.after_step(context(rows(1.0, 2.0)))
    moved = rule.task_weights.clone()
    rule.after_step(context(rows(1.0, 2.0)))
    assert_close(moved, rows(1.1, 0.7) * 2 / 1.8)
    assert torch.equal(rule.task_weights, moved)


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_resumed_rule_continues_bit_for_bit(optimiser):
    rule, other, fresh = (made(3, optimiser=optimiser, lr=0.1) for _ in range(3))
    for losses in ((1.0, 2.0, 3.0), (0.9, 1.0, 3.0)):
        step(rule, (1.0, 2.0, 4.0), losses)
    state = copy.deepcopy(rule.state_dict())
    other.load_state_dict(state)
    fresh.load_state_dict({**state, "_extra_state": {}})
    for norms in ((3.0, 2.0, 4.0), (2.0, 2.0, 1.0), (9.0, 1.0, 1.0)):
        for each in (rule, other, fresh):
            step(each, norms, (0.5, 1.0, 2.0))
    assert torch.equal(rule.task_weights, other.task_weights)
    assert torch.equal(rule.task_weights, fresh.task_weights) == (optimiser == "sgd"), "Adam's own state matters"


def test_a_module_that_moved_keeps_its_state():
    rule = made(2, lr=0.1)
    step(rule, (1.0, 3.0), (1.0, 1.0))
    rule.float().double()  # Replaces the buffers.
    other = made(2, lr=0.1)
    for norms in ((1.0, 3.0), (1.0, 2.0)):
        step(other, norms, (1.0, 1.0))
    step(rule, (1.0, 2.0), (1.0, 1.0))
    assert_close(rule.task_weights, other.task_weights, rtol=0, atol=1e-6)


def test_tasks_may_change_places():
    rule, other, order = made(3), made(3), [2, 0, 1]
    for norms, losses in ((rows(1.0, 2.0, 5.0), rows(1.0, 1.0, 1.0)), (rows(3.0, 1.0, 1.0), rows(0.5, 0.9, 0.1))):
        first = step(rule, norms.tolist(), losses.tolist())
        assert_close(step(other, norms[order].tolist(), losses[order].tolist()), first[order])
    assert_close(other.task_weights, rule.task_weights[order])


def test_scales_one_task_and_no_gradient():
    assert made(3, scale="mean").weights(torch.eye(3)).tolist() == pytest.approx([1 / 3] * 3)
    assert_close(made(1).direction(rows([3.0, -4.0])), rows(3.0, -4.0))
    rule = made(2)
    assert_close(rule.direction(torch.zeros(2, 3).double()), torch.zeros(3).double())
    step(rule, (0.0, 0.0), (1.0, 2.0))
    assert rule.task_weights.tolist() == [1.0, 1.0]


def test_what_it_declares():
    rule = made(2)
    assert (rule.view, rule.heads, rule.scale) == ("last_shared", "weighted", "sum")
    assert make_balancer("gradnorm", heads="unit").heads == "unit"
    assert not list(rule.parameters())
    with pytest.raises(MethodError, match="above 0"):
        rule.direction(torch.eye(2), torch.tensor([1.0, 0.0]))


BAD = [("alpha", -0.5), ("alpha", float("nan")), ("lr", 0.0), ("lr", float("inf")), ("optimiser", "adamw")]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_arguments_out_of_range(name, value):
    with pytest.raises(MethodError, match=rf"gradnorm: .*{name}.*{value}"):
        make_balancer("gradnorm", **{name: value})
