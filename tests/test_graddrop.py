"""GradDrop: sign purity, expectation, leak, and agreement with TorchJD."""

from __future__ import annotations

import pytest
import torch
import torchjd.aggregation
from balancers import context, rows
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError

GRADIENTS = ((2.0, -1.0), (-1.0, -1.0))


def test_expectation():
    # p = (2/3, 0), so the first coordinate is 2 with probability 2/3 and -1 otherwise: 1; the second is always -2.
    rule = make_balancer("graddrop")
    drawn = torch.stack([rule.direction(rows(*GRADIENTS), seed=seed) for seed in range(300)])
    assert set(drawn[:, 0].tolist()) == {2.0, -1.0}
    assert set(drawn[:, 1].tolist()) == {-2.0}
    # Standard error of the mean: 3 · √(2/9 / 300) = 0.08.
    assert drawn[:, 0].mean().item() == pytest.approx(1.0, abs=0.25)


def test_every_coordinate_draws_for_itself():
    drawn = make_balancer("graddrop").direction(rows(*GRADIENTS)[:, :1].expand(2, 4000))
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.08)


def test_one_sign_passes_whole():
    positive = rows((1.0, 2.0), (3.0, 0.5))
    assert_close(make_balancer("graddrop").direction(positive), rows(4.0, 2.5))
    assert_close(make_balancer("graddrop").direction(-positive), rows(-4.0, -2.5))


def test_leak():
    whole, half = make_balancer("graddrop", leak=1.0), make_balancer("graddrop", leak=0.5)
    assert_close(whole.direction(rows(*GRADIENTS)), rows(1.0, -2.0))
    found = {half.direction(rows(*GRADIENTS), seed=seed)[0].item() for seed in range(20)}
    assert found == {2.0 - 0.5, -1.0 + 0.5 * 2.0}
    for wrong in (-0.1, 1.5):
        with pytest.raises(MethodError, match="leak"):
            make_balancer("graddrop", leak=wrong)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_torchjd_under_the_same_seed(seed):
    gradients = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ours = make_balancer("graddrop", leak=0.25).direction(gradients, seed=seed)
    drawn = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(seed)))
    with torch.random.fork_rng():
        torch.manual_seed(drawn)
        oracle = torchjd.aggregation.GradDrop(leak=torch.full((4,), 0.25, dtype=torch.float64))(gradients)
    assert_close(ours, oracle, atol=1e-10, rtol=1e-10)


def test_draws_come_from_the_context_alone():
    rule, gradients = make_balancer("graddrop"), rows(*GRADIENTS)[:, :1].expand(2, 50)
    state = torch.random.get_rng_state()
    found = [rule.combine_gradients(gradients, context(torch.ones(2), seed=s)) for s in (5, 5, 6)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_zero_and_equal_rows_and_order():
    rule = make_balancer("graddrop")
    assert_close(rule.direction(torch.zeros(3, 2)), torch.zeros(2))
    assert_close(rule.direction(rows((1.0, -2.0), (0.0, 0.0))), rows(1.0, -2.0))
    assert_close(rule.direction(rows((1.0, -2.0), (1.0, -2.0))), rows(2.0, -4.0))
    assert_close(rule.direction(rows([3.0, -4.0])), rows(3.0, -4.0))
    gradients = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(rule.direction(gradients, seed=1), rule.direction(gradients[[2, 0, 1]], seed=1))


def test_it_is_no_function_of_the_gramian():
    with pytest.raises(TypeError, match="direction"):
        make_balancer("graddrop").weights(torch.eye(2))
