"""COSMOS: golden, draws, the plain sum without the cosine, scale and arguments."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from tests.support.balancers import context, rows


def preferring(monkeypatch, rule, *weights):
    monkeypatch.setattr(type(rule), "_preferences", lambda self, ctx: rows(*weights))
    return rule


@pytest.mark.parametrize(("scale", "factor"), [("raw", 1), ("sum", 2)])
def test_golden(monkeypatch, scale, factor):
    rule = preferring(monkeypatch, make_balancer("cosmos", scale=scale), 0.5, 0.5)
    weights, value = loss_weights(rule.combine_losses, context(rows(1.0, 2.0)))
    assert_close(value, factor * torch.tensor(0.551317).double(), atol=2e-6, rtol=0)
    assert_close(weights, factor * rows(0.373509, 0.563246), atol=2e-6, rtol=0)


def test_without_the_cosine_it_is_a_random_weighting():
    rule = make_balancer("cosmos", lambda_=0.0)
    found = torch.stack([rule.direction(torch.eye(3).double(), seed=seed) for seed in range(300)])
    assert_close(found.sum(1), torch.full((300,), 3.0).double())
    assert_close(found.mean(0), torch.ones(3).double(), atol=0.15, rtol=0)
    assert (found > 0).all() and found.std() > 0.5
    near = make_balancer("cosmos", lambda_=0.0, concentration=1e6).direction(torch.eye(3).double())
    assert_close(near, torch.ones(3).double(), atol=0.02, rtol=0)


def test_draws_are_those_of_all_tasks_and_leave_the_global_generator_alone():
    rule = make_balancer("cosmos", lambda_=0.0, scale="raw")
    rule.configure(3)
    state = torch.random.get_rng_state()
    whole = loss_weights(rule.combine_losses, context(torch.ones(3).double(), seed=5))[0]
    part = loss_weights(rule.combine_losses, context(torch.ones(2).double(), active=(0, 2), seed=5))[0]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_close(part, whole[[0, 2]] / whole[[0, 2]].sum())


def test_degenerate_draws_and_losses_are_finite():
    for concentration in (1e-6, 1e6):
        for losses in ((0.0, 0.0, 0.0), (1e-30, 1.0, 1e30)):
            rule = make_balancer("cosmos", concentration=concentration)
            assert rule.direction(torch.eye(3).double(), rows(*losses)).isfinite().all()


def test_arguments_out_of_range():
    for name, value in (("lambda_", -1.0), ("lambda_", float("inf")), ("concentration", 0.0)):
        with pytest.raises(MethodError, match=f"cosmos: {name} must"):
            make_balancer("cosmos", **{name: value})
    with pytest.raises(MethodError, match="cosmos: .*mean"):
        make_balancer("cosmos", scale="mean")
