"""Balancers by hand: a call is a step, and the rule moves from call to call as it does in training."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mtlbench import registry
from mtlbench.balancing import Balancer, make_balancer
from mtlbench.balancing.base import loss_weights, overrides
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, context, draws, rows

BALANCERS = sorted(name for name in registry.shipped() if issubclass(registry.find(name), Balancer))
ARGUMENTS = {
    "nash_mtl": {"update_every": 3}, "stch": {"warmup_epochs": 1, "mu": 0.3}, "db_mtl": {"sigma": 0.5},
    "inverse_gradient_norm": {"beta": 0.5},
}  # fmt: skip
PER_EPOCH = 3
LOOKING = ("inter_task_affinity", "it_mtl")
"""Rules that try changes before the step."""


def given(parts, steps=12):
    """Yields Jacobian and losses of every step, and the losses after it."""
    generator = torch.Generator().manual_seed(0)
    every = torch.rand(steps + 1, 3, generator=generator, dtype=torch.float64) + 0.5
    for before, after in zip(every, every[1:], strict=False):
        yield torch.randn(*parts, 3, 5, generator=generator, dtype=torch.float64), before, after


def seen_from(losses, after):
    """Returns a look-ahead before the step: the losses move as those of the step do, along the first parameter."""
    return lambda change: losses if change is None else losses + change[0] * (losses - after)


def steps_of_training(rule, parts, seed):
    """Yields directions: the hooks in the order in which a run calls them, epochs of three steps."""
    rule.configure(3)
    for n, (jacobian, losses, after) in enumerate(given(parts)):
        ctx = context(losses, step=n, epoch=n // PER_EPOCH, lookahead=seen_from(losses, after))
        ctx.generator.set_state(draws(seed, n).get_state())
        weighted = loss_weights(rule.combine_losses, ctx)[0][:, None] * jacobian
        first, last = (weighted[0], weighted[2]) if parts else (weighted, weighted)
        if overrides(rule, Balancer, "combine_gradients"):
            yield rule.combine_gradients(first, ctx).clone()
        elif overrides(rule, Balancer, "gradient_weights"):
            yield rule.gradient_weights(first @ (weighted[1] if parts else first).T, ctx) @ last
        else:
            yield weighted.sum(0)
        rule.after_step(replace(ctx, lookahead=lambda change, after=after: after))
        if (n + 1) % PER_EPOCH == 0:
            rule.epoch_end()


@pytest.mark.parametrize("name", BALANCERS)
def test_calls_are_the_steps_of_a_run(name):
    rule = make_balancer(name, **ARGUMENTS.get(name, {}))
    parts = (3,) if rule.batches == 3 else ()
    expected = steps_of_training(copy.deepcopy(rule), parts, seed=5)
    for n, (jacobian, losses, after) in enumerate(given(parts)):
        ahead = {"lookahead": seen_from(losses, after)} if name in LOOKING else {}
        found = rule.direction(jacobian, losses, seed=5, epoch=n // PER_EPOCH, **ahead).clone()
        rule.end_step(after)
        assert_close(found, next(expected), rtol=1e-12, atol=0)


def test_every_rule_with_a_schedule_needs_the_number_of_the_step():
    """The test above can fail: with every call the first one, or all in one epoch, directions are others."""
    for name, when in (
        ("moco", {"step": 0}),
        ("db_mtl", {"step": 0}),
        ("nash_mtl", {"step": 0}),
        ("rlw", {"step": 0}),
        ("dwa", {"epoch": 0}),
        ("stch", {"epoch": 0}),
    ):
        one, other = (make_balancer(name, **ARGUMENTS.get(name, {})) for _ in range(2))
        for n, (jacobian, losses, _) in enumerate(given(())):
            found = one.direction(jacobian, losses, epoch=n // PER_EPOCH)
            still = other.direction(jacobian, losses, **{"epoch": n // PER_EPOCH, **when})
        assert (found - still).abs().max() > 1e-3, name


def test_a_step_that_is_not_ended_is_ended_by_the_next_call():
    ended, open_ = make_balancer("gradnorm"), make_balancer("gradnorm")
    for jacobian, losses, _ in given(()):
        assert_close(open_.direction(jacobian, losses), ended.direction(jacobian, losses))
        ended.end_step()
        ended.end_step()  # Nothing is left to do.
    assert not torch.equal(open_.task_weights, ended.task_weights)
    open_.end_step()
    assert torch.equal(open_.task_weights, ended.task_weights) and ended.task_weights.std() > 0.01


def test_dwa_by_hand():
    dwa = make_balancer("dwa")
    for epoch, losses in ((0, (2.0, 2.0)), (0, (4.0, 2.0)), (1, (3.0, 1.0)), (1, (3.0, 1.0))):
        assert_close(dwa.direction(torch.eye(2), torch.tensor(losses), epoch=epoch), torch.ones(2))
    # Means (3, 2), then (3, 1): r = (1, 1/2), and 2 · softmax(r / 2) = (1.1244, 0.8756).
    found = dwa.direction(torch.eye(2), torch.ones(2), epoch=2)
    assert_close(found, torch.tensor([1.124353, 0.875647]), rtol=0, atol=1e-6)


def test_nash_keeps_its_weights_between_two_solutions():
    nash = make_balancer("nash_mtl", update_every=2)
    first = nash.weights(torch.eye(2).double())
    assert_close(nash.weights(4 * torch.eye(2).double()), first)
    assert_close(nash.weights(4 * torch.eye(2).double()), first / 2)


def test_famo_learns_from_the_losses_after_the_step():
    famo, losses = make_balancer("famo", weight_decay=0.0), torch.tensor([1.0, 2.0])
    famo.direction(torch.eye(2), losses)
    with pytest.raises(MethodError, match=r"end_step\(losses\) between two calls"):
        famo.direction(torch.eye(2), losses)
    famo.end_step(torch.tensor([0.5, 2.0]))
    assert_close(famo.logits, torch.tensor([-0.025, 0.025]), rtol=0, atol=1e-6)
    famo.direction(torch.eye(2), losses)


def test_draws_move_with_the_step_and_come_again():
    rlw, one = make_balancer("rlw"), rows(*CONFLICT)
    first, second = rlw.direction(one, seed=1), rlw.direction(one, seed=1)
    assert not torch.equal(first, second)
    assert torch.equal(make_balancer("rlw").direction(one, seed=1), first)
    assert torch.equal(rlw.direction(one, seed=1, step=1), second)
    third = rlw.direction(one, seed=1)
    assert torch.equal(make_balancer("rlw").direction(one, seed=1, step=2), third)


def test_configuring_starts_anew():
    moco, jacobian = make_balancer("moco"), rows(*CONFLICT)
    first = moco.direction(jacobian, epoch=3).clone()
    second = moco.direction(jacobian, epoch=4).clone()
    moco.configure(2)
    assert_close(moco.direction(jacobian), first)
    assert_close(moco.direction(jacobian), second)


def test_epochs_go_forward():
    rule = make_balancer("uniform")
    rule.direction(torch.eye(2), epoch=2)
    with pytest.raises(MethodError, match="Found epoch 1 after 2"):
        rule.direction(torch.eye(2), epoch=1)


@pytest.mark.parametrize("name", ["uniform", "famo", "graddrop", "db_mtl"])
def test_weights_of_a_rule_that_has_none(name):
    with pytest.raises(MethodError, match=r"is none. Use direction\(\)"):
        make_balancer(name).weights(torch.eye(2))
