"""GradDrop: sign purity, expectation, leak, and agreement with TorchJD."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
import torchjd.aggregation
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from mtlbench.methods.gradients import graddrop
from mtlbench.methods.gradients.graddrop import uniform
from tests.support.balancers import context, draws, rows
from tests.support.jacobians import KINDS, jacobian

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
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(MethodError, match="leak"):
            make_balancer("graddrop", leak=wrong)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tasks", [2, 3, 7, 40])
@pytest.mark.parametrize("leak", [0.0, 0.25])
def test_it_is_torchjd_with_the_same_draws(kind, tasks, leak, monkeypatch):
    gradients = jacobian(kind, tasks)
    ours = make_balancer("graddrop", leak=leak).direction(gradients, seed=3)
    drawn = 1 - uniform(gradients[0], draws(3))  # p > U, written with 1 - U.
    monkeypatch.setattr(torch, "rand", lambda *shape, **more: drawn)
    oracle = torchjd.aggregation.GradDrop(leak=torch.full((tasks,), leak, dtype=torch.float64))(gradients)
    assert_close(ours, oracle, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sign_is_kept_as_often_as_it_is_pure(dtype):
    rule, count = make_balancer("graddrop"), 40_000
    for positive in (0.001, 0.2, 0.5, 0.9):
        # Σ g = p and p - 1 of the two signs: the purity is p.
        gradients = torch.tensor([[positive], [positive - 1]], dtype=dtype).expand(2, count)
        kept = (rule.direction(gradients) > 0).double().mean().item()
        assert kept == pytest.approx(positive, abs=5 * (positive * (1 - positive) / count) ** 0.5)


def test_draws_are_uniform():
    for dtype in (torch.float32, torch.float64):
        drawn = uniform(torch.empty(100_000, dtype=dtype), torch.Generator().manual_seed(0))
        assert drawn.dtype == dtype and scipy.stats.kstest(drawn.double().numpy(), "uniform").pvalue > 1e-3
        assert drawn.min() >= 0 and drawn.max() < 1


@pytest.mark.parametrize("drawn", [0.0, 1 - 2**-24])
def test_one_sign_passes_whole_at_the_ends_of_the_draw(drawn, monkeypatch):
    monkeypatch.setattr(graddrop, "uniform", lambda like, generator: torch.full_like(like, drawn))
    generator = torch.Generator().manual_seed(0)
    same = torch.randn(3, 5000, generator=generator).abs() * torch.logspace(-10, 10, 5000)
    for gradients in (same, -same, same[:1], -same[:1]):
        found = make_balancer("graddrop").direction(gradients)
        assert_close(found, gradients.sum(0), rtol=1e-6, atol=0)


def test_blocks_of_columns_draw_for_themselves():
    rule, gradients = make_balancer("graddrop"), rows(*GRADIENTS)[:, :1].expand(2, 300)
    assert rule.COLUMNWISE

    def blocks(seed):
        ctx = context(torch.ones(2), seed=seed)
        return [rule.combine_gradients(part, ctx) for part in gradients.split(100, 1)]

    one, again, other = torch.cat(blocks(1)), torch.cat(blocks(1)), torch.cat(blocks(2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    first, second, third = blocks(1)
    assert not torch.equal(first, second) and not torch.equal(second, third)


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
    assert_close(*(rule.direction(given, seed=1, step=0) for given in (gradients, gradients[[2, 0, 1]])))


def test_it_is_no_function_of_the_gramian():
    with pytest.raises(MethodError, match="GradDrop is none. Use direction"):
        make_balancer("graddrop").weights(torch.eye(2))
