"""ExcessMTL: goldens, agreement with TorchJD after one step of warm-up, absent tasks and state."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close
from torchjd.aggregation import ExcessMTLWeighting

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from mtlbench.methods.gradients import excess_mtl
from tests.support.balancers import CONFLICT, context, rows
from tests.support.jacobians import KINDS, jacobian


def made(tasks=2, **arguments):
    rule = make_balancer("excess_mtl", **arguments)
    rule.configure(tasks)
    return rule.double()


def combine(rule, gradients, active=None):
    return rule.combine_gradients(gradients, context(torch.ones(len(gradients)), active=active))


def weights(rule, gradients, active=None):
    """Returns the weights (A,) that solve for the direction; the gradients must be independent."""
    return torch.linalg.lstsq(gradients.T, combine(rule, gradients, active)[:, None]).solution[:, 0]


def test_goldens():
    rule = made(robust_step_size=1.0)
    assert_close(combine(rule, rows(*CONFLICT)), rows(0.0, 1.0))
    assert_close(rule.first, rows(1.0, 2.0), atol=1e-6, rtol=0)
    # S = (5, 0), (1, 2); e = (4/√5, 1/√2); ratios (1.788854, .353553); w = 2 softmax.
    assert_close(combine(rule, rows((2.0, 0.0), (0.0, 1.0))), rows(2 * 1.615452, 0.384548), atol=1e-5, rtol=0)
    # The spec's rate: w = 2 softmax(.01 · ratios).
    rule = made()
    combine(rule, rows(*CONFLICT))
    share = 2 / (1 + math.exp(-0.01 * (4 / math.sqrt(5) - 1 / math.sqrt(8))))
    assert_close(combine(rule, rows((2.0, 0.0), (0.0, 1.0))), rows(2 * share, 2 - share), atol=1e-6, rtol=0)


@pytest.mark.parametrize("tasks", [2, 3, 7, 40])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "zero row"])  # See degenerate gradients, below.
@pytest.mark.parametrize("rate", [0.01, 1.0])
def test_it_is_torchjd_after_one_step_of_warm_up(kind, tasks, rate):
    rule, oracle = made(tasks, robust_step_size=rate), ExcessMTLWeighting(rate, n_warmup_steps=1)
    for step in range(5):
        gradients = jacobian(kind, tasks, step)
        expected = tasks * oracle(gradients)
        before = gradients.clone()
        found = combine(rule, gradients)
        # TorchJD adds 1e-7 to the first risk.
        assert_close(found, expected @ gradients, rtol=1e-4, atol=1e-6 * float(gradients.norm()))
        assert torch.equal(gradients, before), "the Jacobian is left alone"


def test_a_step_as_the_first_leaves_equal_weights():
    rule, gradients = made(3), torch.tensor([[1.0], [2.0], [5.0]]) * jacobian("plain", 3)
    for _ in range(4):  # The ratios stay equal: e falls as 1 / √n for every task.
        assert_close(combine(rule, gradients), gradients.sum(0), rtol=1e-4, atol=1e-4)


def test_a_task_that_stops_falling_gains():
    rule = made(robust_step_size=0.1)
    for n in range(20):
        found = weights(rule, torch.diag(torch.tensor([1.0 / (n + 1), 1.0]).double()))
    assert found[1] > 1.1 and found.sum().item() == pytest.approx(2)


@pytest.mark.parametrize("block", [1, 7, 60])
def test_blocks_change_nothing(block, monkeypatch):
    whole, parts = made(3), made(3)
    for step in range(3):
        gradients = jacobian("plain", 3, step)
        expected = combine(whole, gradients)
        with monkeypatch.context() as patch:
            patch.setattr(excess_mtl, "BLOCK", block)
            assert_close(combine(parts, gradients), expected)
    assert torch.equal(whole.memory, parts.memory)


def test_tasks_may_change_places():
    one, other, order = made(4), made(4), [2, 0, 3, 1]
    for step in range(3):
        gradients = jacobian("plain", 4, step)
        assert_close(combine(other, gradients[order]), combine(one, gradients))
    assert_close(other.logits, one.logits[order])


def test_degenerate_gradients():
    rule = made(3)
    assert_close(combine(rule, torch.zeros(3, 2).double()), rows(0.0, 0.0))
    # Without a risk above 0 yet there is nothing to compare with, and the weights stay equal; TorchJD takes 0 / 1e-7.
    assert_close(combine(rule, rows((1.0, 0.0), (0.0, 0.0), (0.0, 1.0))), rows(1.0, 1.0))
    # The first risk above 0 is the one to compare with.
    combine(rule, rows((1.0, 0.0), (3.0, 0.0), (0.0, 1.0)))
    assert_close(rule.first, rows(1.0, 3.0, 1.0), atol=1e-6, rtol=0)
    assert_close(combine(made(1), rows([3.0, -4.0])), rows(3.0, -4.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_risk_that_explodes_takes_all_and_breaks_nothing(dtype):
    rule = make_balancer("excess_mtl")
    rule.configure(3)
    tiny = torch.full((3, 1), 1e-21, dtype=dtype) * torch.eye(3, 4, dtype=dtype)
    combine(rule, tiny)
    found = combine(rule, torch.diag(torch.tensor([1e9, 1e-21, 1e-21], dtype=dtype)) @ torch.eye(3, 4, dtype=dtype))
    assert_close(found[0].item(), 3e9)
    for active in ((1, 2), None):
        gradients = torch.eye(3, 4, dtype=dtype)[: len(active or rule.logits)]
        assert combine(rule, gradients, active).isfinite().all() and rule.logits.isfinite().all()


def test_absent_tasks_keep_weight_and_sums():
    rule = made(3, robust_step_size=0.3)
    for step in range(3):
        combine(rule, jacobian("plain", 3, step) * (1 + step * torch.arange(3.0)[:, None]))
    before, sums, pair = rule.logits.exp(), rule.memory[1].clone(), made(2, robust_step_size=0.3)
    pair.first, pair.logits, pair.memory = rule.first[::2].clone(), rule.logits[::2].clone(), rule.memory[::2].clone()
    gradients = jacobian("plain", 2, 5)
    found = combine(rule, gradients, active=(0, 2))
    assert_close(found, combine(pair, gradients))
    assert weights(pair, gradients).sum().item() == pytest.approx(2)
    after = rule.logits.exp()
    assert torch.equal(rule.memory[1], sums) and after[1] == before[1] and after[0] != before[0]
    assert after.sum().item() == pytest.approx(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_is_in_the_checkpoint(dtype):
    rule, other = (make_balancer("excess_mtl", robust_step_size=0.5) for _ in range(2))
    rule.configure(3)
    other.configure(3)
    for step in range(3):
        combine(rule, jacobian("plain", 3, step).to(dtype))
    other.load_state_dict(rule.state_dict())
    for step in range(3, 6):
        gradients = jacobian("plain", 3, step).to(dtype)
        found = combine(rule, gradients)
        assert found.dtype == dtype and torch.equal(found, combine(other, gradients))
    assert not list(rule.parameters())


def test_scale_and_arguments():
    gradients = rows(*CONFLICT)
    assert_close(made(scale="mean").direction(gradients), made().direction(gradients) / 2)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(MethodError, match="excess_mtl: robust_step_size must"):
            make_balancer("excess_mtl", robust_step_size=wrong)
