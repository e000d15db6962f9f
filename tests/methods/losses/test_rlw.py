"""Random loss weighting."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, context, draws, rows


def drawn(tasks, seed, active=None, dtype=torch.float64, **arguments):
    rule = make_balancer("rlw", **arguments)
    rule.configure(tasks)
    losses = torch.ones(tasks if active is None else len(active), dtype=dtype)
    return loss_weights(rule.combine_losses, context(losses, active=active, seed=seed))[0]


def test_weights_are_the_softmax_of_normal_numbers():
    z = torch.randn(3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = z.exp() / z.exp().sum()
    assert_close(drawn(3, 4, scale="mean"), expected)
    assert_close(drawn(3, 4), 3 * expected)


@pytest.mark.parametrize("tasks", [1, 2, 5, 40])
def test_weights_are_positive_and_sum_to_their_number(tasks):
    for seed in range(5):
        assert (drawn(tasks, seed) > 0).all() and drawn(tasks, seed).sum().item() == pytest.approx(tasks)
        assert drawn(tasks, seed, scale="mean").sum().item() == pytest.approx(1)


def test_every_task_has_weight_one_on_average():
    rule, losses = make_balancer("rlw"), torch.ones(3, dtype=torch.float64)
    rule.configure(3)
    found = torch.stack([loss_weights(rule.combine_losses, context(losses, seed=seed))[0] for seed in range(3000)])
    # The standard error is the spread over √3000.
    assert ((found.mean(0) - 1).abs() < 4 * found.std(0) / 3000**0.5).all()
    assert (found.std(0) > 0.3).all()
    logs = found.log()  # The difference of two of the z: normal with variance 2.
    assert (logs[:, 0] - logs[:, 1]).var().item() == pytest.approx(2, rel=0.15)


def test_draws_come_from_the_context_alone():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = drawn(4, 5)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"
    torch.manual_seed(2)
    assert torch.equal(drawn(4, 5), first)
    assert not torch.equal(drawn(4, 6), first)


def test_the_draw_does_not_depend_on_precision():
    # From 16 numbers on, PyTorch draws other ones in float32 than in float64.
    expected, default = drawn(20, 5), torch.get_default_dtype()
    try:
        for other in (torch.float32, torch.float64):
            torch.set_default_dtype(other)
            assert_close(drawn(20, 5, dtype=torch.float32), expected.float())
    finally:
        torch.set_default_dtype(default)


def test_an_absent_task_does_not_change_the_odds_of_others():
    whole, part = drawn(3, 7), drawn(3, 7, active=(0, 2))
    assert part.sum().item() == pytest.approx(2)
    assert (part[0] / part[1]).item() == pytest.approx((whole[0] / whole[2]).item())


def test_the_direction_uses_one_draw():
    found = make_balancer("rlw").direction(rows(*CONFLICT), rows(5.0, 0.1), seed=3)
    expected = 2 * torch.softmax(torch.randn(2, generator=draws(3), dtype=torch.float64), 0)
    assert_close(found, expected @ rows(*CONFLICT))
    assert_close(make_balancer("rlw").direction(rows([3.0, -4.0]), seed=3), rows(3.0, -4.0))
    assert_close(make_balancer("rlw").direction(torch.zeros(3, 2), seed=3), torch.zeros(2))


def test_an_unknown_scale_is_refused():
    with pytest.raises(MethodError, match="rlw: Unknown scale 'raw'.*mean, sum"):
        make_balancer("rlw", scale="raw")
