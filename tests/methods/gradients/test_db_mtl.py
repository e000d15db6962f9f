"""DB-MTL: goldens, log losses, smoothing, equal lengths, absent tasks and state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from tests.support.balancers import context, rows
from tests.support.jacobians import KINDS, jacobian

GOLDEN = ((3.0, 4.0), (0.0, 1.0))


def made(tasks=2, **arguments):
    rule = make_balancer("db_mtl", **arguments)
    rule.configure(tasks)
    return rule


def combine(rule, gradients, step=0, active=None):
    return rule.combine_gradients(gradients, context(torch.ones(len(gradients)), step=step, active=active))


def reference(steps, beta, sigma, skip_first):
    """The rule in NumPy: smoothed gradients after every step, and the directions."""
    smoothed, directions = np.zeros_like(steps[0]), []
    for n, gradients in enumerate(steps, 1):
        share = 0.0 if skip_first and n == 1 else beta / n**sigma
        smoothed = gradients + share * (smoothed - gradients)
        lengths = np.sqrt((smoothed**2).sum(1))
        unit = [row / length for row, length in zip(smoothed, lengths, strict=True) if length > 0]
        directions.append(lengths.max() * np.sum(unit, 0))
    return directions


def test_goldens():
    assert_close(made(beta=0.0).direction(rows(*GOLDEN)), rows(3.0, 9.0))
    # From zero, the first step sees a tenth; the flag takes the whole.
    assert_close(made().direction(rows(*GOLDEN)), rows(0.3, 0.9))
    assert_close(made(skip_first=True).direction(rows(*GOLDEN)), rows(3.0, 9.0))


def test_gradients_are_those_of_log_losses():
    losses = torch.tensor([0.5, 4.0]).double()
    weights, value = loss_weights(made().combine_losses, context(losses))
    assert_close(weights, rows(2.0, 0.25))
    assert value.item() == pytest.approx(np.log(2.0))
    # Rows (1.5, 2), (0, 4) times 1 / L are the golden's.
    found = made(beta=0.0).direction(rows((1.5, 2.0), (0.0, 4.0)), losses=losses)
    assert_close(found, rows(3.0, 9.0))
    with pytest.raises(MethodError, match="above 0"):
        made().direction(rows(*GOLDEN), losses=torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("tasks", [2, 7, 40])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arguments", [{}, {"beta": 0.5, "sigma": 0.5}, {"beta": 0.7, "skip_first": True}])
def test_it_is_the_rule_in_numpy(kind, tasks, arguments):
    rule, steps = made(tasks, **arguments), [jacobian(kind, tasks, seed) for seed in range(5)]
    full = {"beta": 0.9, "sigma": 0.0, "skip_first": False, **arguments}
    for n, expected in enumerate(reference([s.numpy() for s in steps], **full)):
        before = steps[n].clone()
        assert_close(combine(rule, steps[n], step=n), torch.from_numpy(expected), rtol=1e-9, atol=1e-9)
        assert torch.equal(steps[n], before), "the Jacobian is left alone"


@pytest.mark.parametrize("kind", ["plain", "spread"])
def test_every_task_enters_with_the_largest_length(kind):
    # Orthogonal tasks: the parts of the direction along each are what the task contributes.
    lengths = jacobian(kind, 5, 1).norm(dim=1)
    found = made(5, beta=0.0).direction(torch.diag(lengths))
    assert_close(found, lengths.max().expand(5))


def test_scaling_a_loss_changes_nothing_in_the_others_shares():
    losses, gradients = torch.tensor([0.5, 4.0, 2.0]).double(), jacobian("plain", 3)
    factors = torch.tensor([1e-4, 1.0, 1e5]).double()
    plain, scaled = made(3), made(3)
    for _ in range(3):
        assert_close(
            scaled.direction(factors[:, None] * gradients, losses * factors), plain.direction(gradients, losses)
        )


def test_tasks_may_change_places():
    gradients, order = jacobian("spread", 4), [2, 0, 3, 1]
    assert_close(made(4).direction(gradients[order]), made(4).direction(gradients))


def test_degenerate_gradients():
    assert_close(made(3).direction(torch.zeros(3, 2)), torch.zeros(2))
    assert_close(made(beta=0.0).direction(rows((3.0, 4.0), (0.0, 0.0))), rows(3.0, 4.0))
    assert_close(made(1, beta=0.0).direction(rows([3.0, -4.0])), rows(3.0, -4.0))


def test_absent_tasks_keep_their_rows_and_take_no_part():
    rule, pair, gradients = made(3), made(2), jacobian("plain", 3)
    combine(rule, gradients)
    combine(pair, gradients[::2])
    kept = rule.memory[1].clone()
    later = jacobian("plain", 2, 1)
    assert_close(combine(rule, later, 1, active=(0, 2)), combine(pair, later, 1))
    assert torch.equal(rule.memory[1], kept)


def test_the_flag_waits_for_the_first_label():
    rule = made(2, skip_first=True)
    combine(rule, rows([1.0, 0.0]), active=(0,))
    combine(rule, rows((1.0, 0.0), (0.0, 5.0)), 1)
    assert_close(rule.memory, rows((1.0, 0.0), (0.0, 5.0)))
    combine(rule, rows((1.0, 0.0), (0.0, 15.0)), 2)
    assert_close(rule.memory[1], rows(0.0, 6.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("skip_first", [False, True])
def test_state_is_in_the_checkpoint(dtype, skip_first):
    rule, other = made(3, sigma=0.5, skip_first=skip_first), made(3, sigma=0.5, skip_first=skip_first)
    for step in range(3):
        combine(rule, jacobian("plain", 3, step).to(dtype), step)
    other.load_state_dict(rule.state_dict())
    for step in range(3, 6):
        gradients = jacobian("plain", 3, step).to(dtype)
        found = combine(rule, gradients, step)
        assert found.dtype == dtype and torch.equal(found, combine(other, gradients, step))
    assert not list(rule.parameters())


def test_scale_and_arguments():
    assert_close(made(beta=0.0, scale="mean").direction(rows(*GOLDEN)), rows(1.5, 4.5))
    for wrong in ({"beta": 1.0}, {"beta": -0.1}, {"beta": float("nan")}, {"sigma": -1.0}, {"sigma": float("inf")}):
        with pytest.raises(MethodError, match=f"db_mtl: {next(iter(wrong))} must"):
            make_balancer("db_mtl", **wrong)
