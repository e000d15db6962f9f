"""MoCo: goldens, agreement with the rule in NumPy, the min-norm point as its rest, absent tasks and state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, ORTHOGONAL, context, rows
from tests.support.jacobians import KINDS, jacobian


def made(tasks=2, **arguments):
    rule = make_balancer("moco", **arguments)
    rule.configure(tasks)
    rule.double().shares.fill_(1 / tasks)  # The default buffer is float32.
    return rule


def combine(rule, gradients, step=0, active=None, losses=None):
    losses = torch.ones(len(gradients)) if losses is None else losses
    return rule.combine_gradients(gradients, context(losses, step=step, active=active))


def onto_simplex(point):
    """The projection by its condition: max(point - t, 0) sums to 1."""
    shift = brentq(lambda t: np.maximum(point - t, 0).sum() - 1, point.min() - 1, point.max(), xtol=1e-15)
    return np.maximum(point - shift, 0)


def reference(steps, beta=0.5, beta_sigma=0.5, gamma=0.1, gamma_sigma=0.5, rho=0.0, losses=None):
    tasks = len(steps[0])
    tracked, share = np.zeros_like(steps[0]), np.full(tasks, 1 / tasks)
    for n, gradients in enumerate(steps, 1):
        if losses is not None:
            lengths = np.linalg.norm(gradients, axis=1, keepdims=True)
            gradients = np.divide(gradients, lengths, out=np.zeros_like(gradients), where=lengths > 0) * losses[:, None]
        tracked = tracked - beta / n**beta_sigma * (tracked - gradients)
        slope = (tracked @ tracked.T + rho * np.eye(tasks)) @ share
        share = onto_simplex(share - gamma / n**gamma_sigma * slope)
        yield share @ tracked, share


def test_goldens():
    # y = G: λ is MoDo's golden. y = G / 2: y yᵀ λ = (0, .125), λ = (.5, .4875) + .00625.
    rule = made(beta=1.0, scale="mean")
    assert_close(combine(rule, rows(*CONFLICT)), rows(0.05, 0.475))
    assert_close(rule.shares, rows(0.525, 0.475))
    rule = made(scale="mean")
    assert_close(combine(rule, rows(*CONFLICT)), rows(0.00625, 0.246875))
    assert_close(rule.shares, rows(0.50625, 0.49375))
    # With ρ = 1 the slope is (.5, .625): the same difference, here from λ = (.5, .5), and the same λ.
    rule = made(rho=1.0)
    combine(rule, rows(*CONFLICT))
    assert_close(rule.shares, rows(0.50625, 0.49375))


@pytest.mark.parametrize("tasks", [2, 7, 40])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arguments", [{}, {"beta": 0.3, "beta_sigma": 0.0, "gamma": 0.01, "rho": 0.5}])
def test_it_is_the_rule_in_numpy(kind, tasks, arguments):
    rule = made(tasks, scale="mean", **arguments)
    steps = [jacobian(kind, tasks, seed) / 8 for seed in range(5)]
    for n, (direction, share) in enumerate(reference([s.numpy() for s in steps], **arguments)):
        before = steps[n].clone()
        assert_close(combine(rule, steps[n], n), torch.from_numpy(direction), rtol=1e-7, atol=1e-8)
        assert_close(rule.shares, torch.from_numpy(share), rtol=0, atol=1e-8)
        assert torch.equal(steps[n], before), "the Jacobian is left alone"


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_may_take_the_length_of_their_loss(kind):
    losses, steps = torch.tensor([0.3, 1.0, 2.0]).double(), [jacobian(kind, 3, seed) for seed in range(4)]
    rule = made(3, normalise=True, scale="mean")
    for n, (direction, _) in enumerate(reference([s.numpy() for s in steps], losses=losses.numpy())):
        assert_close(combine(rule, steps[n], n, losses=losses), torch.from_numpy(direction), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("gradients", "share", "direction"),
    [(CONFLICT, (0.6, 0.4), (0.2, 0.4)), (ORTHOGONAL, (0.8, 0.2), (0.8, 0.4))],
)
def test_it_comes_to_rest_at_the_shortest_combination(gradients, share, direction):
    rule = made(gamma_sigma=0.0, scale="mean")
    for step in range(200):
        found = combine(rule, rows(*gradients), step)
    assert_close(rule.shares, rows(*share), atol=1e-5, rtol=0)
    assert_close(found, rows(*direction), atol=1e-5, rtol=0)


def test_tasks_may_change_places():
    one, other, order = made(4), made(4), [2, 0, 3, 1]
    for step in range(3):
        gradients = jacobian("plain", 4, step) / 8
        assert_close(combine(other, gradients[order], step), combine(one, gradients, step))
    assert_close(other.shares, one.shares[order])


@pytest.mark.parametrize("normalise", [False, True])
def test_degenerate_gradients(normalise):
    assert_close(combine(made(3, normalise=normalise), torch.zeros(3, 2).double()), rows(0.0, 0.0))
    losses = torch.tensor([5.0]).double()
    found = combine(made(1, beta=1.0, normalise=normalise), rows([3.0, -4.0]), losses=losses)
    assert_close(found, rows(3.0, -4.0))


def test_absent_tasks_keep_row_and_share():
    rule, pair = made(3), made(2)
    for step in range(3):
        combine(rule, jacobian("plain", 3, step) / 8, step)
    kept, row, held = rule.shares[1].clone(), rule.memory[1].clone(), rule.shares[::2].sum()
    pair.memory, pair.shares = rule.memory[::2].clone(), rule.shares[::2] / held
    gradients = jacobian("plain", 2, 5) / 8
    assert_close(combine(rule, gradients, 3, active=(0, 2)), combine(pair, gradients, 3))
    assert torch.equal(rule.shares[1], kept) and torch.equal(rule.memory[1], row)
    assert_close(rule.shares[::2], held * pair.shares)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_is_in_the_checkpoint(dtype):
    rule, other = make_balancer("moco"), make_balancer("moco")
    rule.configure(3)
    other.configure(3)
    for step in range(3):
        combine(rule, jacobian("plain", 3, step).to(dtype), step)
    other.load_state_dict(rule.state_dict())
    for step in range(3, 6):
        gradients = jacobian("plain", 3, step).to(dtype)
        found = combine(rule, gradients, step)
        assert found.dtype == dtype and torch.equal(found, combine(other, gradients, step))
    assert not list(rule.parameters())


def test_scale_and_arguments():
    gradients = rows(*CONFLICT)
    assert_close(made().direction(gradients), 2 * made(scale="mean").direction(gradients))
    wrong = [("beta", 0.0), ("beta", 1.5), ("beta", float("nan"))]
    wrong += [(name, bad) for name in ("beta_sigma", "gamma", "gamma_sigma", "rho") for bad in (-1.0, float("inf"))]
    for name, value in wrong:
        with pytest.raises(MethodError, match=f"moco: {name} must"):
            make_balancer("moco", **{name: value})
