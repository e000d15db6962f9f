"""FAMO: coefficients, the step of the logits, and its state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from tests.support.balancers import context


def made(tasks=2, **arguments):
    rule = make_balancer("famo", **{"weight_decay": 0.0, **arguments})
    rule.configure(tasks)
    return rule.double()


def step(rule, before, after, active=None):
    """Takes one step of the run; returns the coefficients of the losses."""
    losses = torch.tensor(before, dtype=torch.float64)
    ctx = context(losses, active=active, lookahead=lambda change: torch.tensor(after, dtype=torch.float64))
    weights, _ = loss_weights(rule.combine_losses, ctx)
    rule.after_step(ctx)
    return weights


def test_coefficients_and_logits_of_the_first_step(monkeypatch):
    rule = made()
    seen, own = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda adam: (seen.append(rule.logits.grad.clone()), own(adam)))
    weights = step(rule, (1.0, 2.0), (0.5, 2.0))
    # z / D over its sum: (2/3, 1/3); times T on sum scale.
    assert (weights / 2).tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-7)
    assert seen[0].tolist() == pytest.approx([0.173287, -0.173287], abs=1e-6)
    # The task that improved fast loses weight.
    assert rule.logits.tolist() == pytest.approx([-0.025, 0.025], abs=1e-6)
    assert rule.logits.grad is None


def test_the_change_of_the_parameters_is_none():
    rule, asked = made(), []
    losses = torch.tensor([1.0, 2.0], dtype=torch.float64)
    ctx = context(losses, lookahead=lambda change: (asked.append(change), losses)[1])
    rule.combine_losses(losses, ctx)
    rule.after_step(ctx)
    assert asked == [None]
    assert_close(rule.logits, torch.zeros(2).double())


def test_equal_progress_moves_nothing():
    rule = made(3)
    step(rule, (2.0, 2.0, 2.0), (1.0, 1.0, 1.0))
    assert_close(rule.logits, torch.zeros(3).double(), atol=1e-8, rtol=0)


def test_coefficients_are_inverse_to_losses():
    rule = made(3)
    losses = (1.0, 10.0, 0.1)
    weights = step(rule, losses, losses)
    assert_close(weights * torch.tensor(losses).double(), (weights * torch.tensor(losses).double()).mean().expand(3))
    assert weights.sum().item() == pytest.approx(3)


def test_scaling_a_loss_does_not_change_its_share():
    one, other = made(), made()
    plain = step(one, (1.0, 2.0), (0.5, 2.0)) * torch.tensor([1.0, 2.0]).double()
    scaled = step(other, (1.0, 200.0), (0.5, 200.0)) * torch.tensor([1.0, 200.0]).double()
    assert_close(plain / plain.sum(), scaled / scaled.sum(), atol=1e-7, rtol=0)
    assert_close(one.logits, other.logits, atol=1e-7, rtol=0)


def test_lower_bound():
    rule = made(lower_bound=0.5)
    weights = step(rule, (1.0, 2.0), (1.0, 2.0))
    assert (weights[0] / weights[1]).item() == pytest.approx(3.0, abs=1e-6)  # 1.5 / 0.5


def test_tasks_may_change_places():
    one, other = made(3), made(3)
    order = [2, 0, 1]
    before, after = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.9, 1.0, 3.5])
    for _ in range(3):
        first = step(one, before.tolist(), after.tolist())
        second = step(other, before[order].tolist(), after[order].tolist())
        assert_close(first[order], second)
    assert_close(one.logits[order], other.logits)


def test_absent_tasks_do_not_compete():
    rule = made(3)
    weights = step(rule, (1.0, 2.0), (0.5, 2.0), active=(0, 2))
    assert (weights / 2).tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-7)
    assert rule.logits.tolist() == pytest.approx([-0.025, 0.0, 0.025], abs=1e-6)


def test_one_task_keeps_its_direction():
    gradient = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    direction = made(1).direction(gradient, torch.tensor([7.0]).double())
    assert_close(direction, gradient[0])


def test_zero_losses_stay_finite():
    rule = made()
    weights = step(rule, (0.0, 1.0), (0.0, 1.0))
    assert weights.isfinite().all() and rule.logits.isfinite().all()


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_a_resumed_rule_continues_bit_for_bit(decay):
    rule = made(weight_decay=decay)
    for after in ((0.5, 2.0), (0.8, 1.0)):
        step(rule, (1.0, 2.0), after)
    state = copy.deepcopy(rule.state_dict())
    other = made(weight_decay=decay)
    other.load_state_dict(state)
    for after in ((0.3, 2.0), (0.9, 1.9), (1.0, 0.1)):
        step(rule, (1.0, 2.0), after)
        step(other, (1.0, 2.0), after)
    assert torch.equal(rule.logits, other.logits)
    fresh = made(weight_decay=decay)
    fresh.logits.copy_(state["logits"])
    step(fresh, (1.0, 2.0), (0.3, 2.0))
    assert not torch.equal(fresh.logits, rule.logits), "Adam's own state matters"


def test_no_main_optimiser_sees_the_logits():
    assert not list(made().parameters())


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.0), ("lr", -1.0), ("lr", float("nan")), ("weight_decay", -0.1), ("weight_decay", float("nan")),
     ("lower_bound", -1.0), ("lower_bound", float("inf"))],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(name, value):
    with pytest.raises(MethodError, match=f"famo: {name} must be .* Found {value}"):
        make_balancer("famo", **{name: value})


def test_losses_must_be_positive():
    with pytest.raises(MethodError, match="must be above 0"):
        make_balancer("famo").direction(torch.eye(2), torch.tensor([-1.0, 1.0]))


def test_losses_must_lie_above_the_lower_bound():
    with pytest.raises(MethodError, match="each must be above 1"):
        make_balancer("famo", lower_bound=1.0).direction(torch.eye(2), losses=torch.tensor([0.5, 3.0]))
