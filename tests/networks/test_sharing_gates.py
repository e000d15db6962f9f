"""Hard-concrete gates and sparse changes: values by hand, probabilities by drawing, pruning that no draw decides."""

from __future__ import annotations

import math

import pytest
import torch

from mtlbench.networks.sharing import gates
from mtlbench.networks.sharing.gates import (
    HIGH,
    LOW,
    START,
    SparseDelta,
    SparseDeltas,
    drawn_gate,
    open_probability,
    settled_gate,
)


def test_gates_by_hand():
    logit = torch.tensor([-5.0, 0.0, math.log(2.0), math.log(5.0), 5.0], dtype=torch.float64)
    # σ = 1/2, 2/3, 5/6; times 3, minus 1.5.
    expected = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(settled_gate(logit), expected)
    # u = 1/3: logit(u) = -log 2, so σ(log 4 - log 2) = 2/3.
    drawn = drawn_gate(torch.tensor([math.log(4.0)]), torch.tensor([1 / 3]))
    torch.testing.assert_close(drawn, torch.tensor([0.5]))
    assert drawn_gate(torch.tensor([3.0]), torch.tensor([0.0])) == 0


@pytest.mark.parametrize(("low", "high"), [(LOW, HIGH), (-0.1, 1.1), (-2.0, 1.5)])
@pytest.mark.parametrize("logit", [-2.0, -0.5, 0.0, 1.0, 3.0])
def test_probability_of_an_open_gate_is_that_of_draws(logit, low, high, monkeypatch):
    """Also for intervals whose ends are not as far from 0: at ours the logarithm is 0."""
    monkeypatch.setattr(gates, "LOW", low)
    monkeypatch.setattr(gates, "HIGH", high)
    draws = 200_000
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = float((drawn_gate(torch.full((draws,), logit, dtype=torch.float64), uniform) > 0).double().mean())
    expected = float(open_probability(torch.tensor(logit, dtype=torch.float64)))
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / draws)
    assert expected == pytest.approx(1 / (1 + math.exp(-(logit - math.log(-low / high)))))


def delta(seed=0, shape=(40, 30)):
    """Returns a change with gates on either side, a tensor's gate that is half open, values everywhere, in training."""
    torch.manual_seed(seed)
    made = SparseDelta(torch.zeros(shape, dtype=torch.float64))
    with torch.no_grad():
        made.value.normal_()
        made.logit.normal_(std=2)
        made.group.fill_(1.0)
    return made


def test_no_change_in_the_beginning_bit_for_bit():
    weight = torch.randn(7, 5)
    deltas = SparseDeltas({"a.b": weight})
    deltas.draw(torch.Generator().manual_seed(0))
    assert torch.equal(deltas({"a.b": weight})["a.b"], weight)
    assert float(deltas.openness().detach()) == pytest.approx(36 / 35 / (1 + math.exp(-START)))
    assert deltas.kept() == {"a.b": 0}


def test_draws_follow_the_generator_and_evaluation_has_none():
    change = delta()
    made = []
    for seed in (1, 1, 2):
        change.draw(torch.Generator().manual_seed(seed))
        made.append(change())
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    change.eval()
    assert torch.equal(change(), settled_gate(change.logit) * settled_gate(change.group) * change.value)
    assert not torch.equal(change(), made[0])


def test_pruning_ends_without_a_draw():
    """The official mask is what one draw of the gates left; two draws differ, and so would the networks."""
    first, second = delta(), delta()
    first.draw(torch.Generator().manual_seed(1))
    second.draw(torch.Generator().manual_seed(2))
    assert not torch.equal(first() != 0, second() != 0)
    with torch.no_grad():
        expected = first.eval()()
    for change in (first.train(), second):
        change.settle()
        change.draw(None)
    assert torch.equal(first(), second()) and torch.equal(first(), expected)
    # α > 0 and nothing else opens an entry.
    assert torch.equal(first() != 0, delta().logit > 0)
    kept = [p.clone() for p in first.parameters()]
    first.settle()
    assert all(torch.equal(a, b) for a, b in zip(kept, first.parameters(), strict=True))


def test_closed_entries_get_no_gradient_after_pruning():
    change = delta()
    change.settle()
    weight = torch.randn(40, 30, dtype=torch.float64)
    (change() * weight).sum().backward()
    closed = change() == 0
    assert 0.2 < closed.double().mean() < 0.8
    assert not change.value.grad[closed].any()
    torch.testing.assert_close(change.value.grad[~closed], weight[~closed])
    assert not change.logit.grad.any() and not change.group.grad


def test_gradients_of_drawn_gates_are_those_of_finite_differences():
    change = delta(shape=(3, 2))
    change.draw(torch.Generator().manual_seed(3))
    weight = torch.randn(3, 2, dtype=torch.float64)
    names = ("value", "logit", "group")

    def loss(*values):
        return (torch.func.functional_call(change, dict(zip(names, values, strict=True)), ()) * weight).sum()

    assert torch.autograd.gradcheck(loss, tuple(getattr(change, name) for name in names))


def test_a_closed_group_closes_its_tensor():
    change = delta().eval()
    with torch.no_grad():
        change.group.fill_(-1.0)
    assert not change().any()
    change.settle()
    assert not change().any()


def test_kept_entries_are_those_that_differ():
    deltas = SparseDeltas({"w": torch.zeros(40, 30, dtype=torch.float64), "v": torch.zeros(3, dtype=torch.float64)})
    deltas.changes["w"].load_state_dict(delta().state_dict())
    base = {"w": torch.zeros(40, 30, dtype=torch.float64), "v": torch.zeros(3, dtype=torch.float64)}
    changed = deltas.eval()(base)
    assert deltas.kept() == {name: int((changed[name] != base[name]).sum()) for name in base}
    assert 100 < deltas.kept()["w"] < 1100 and deltas.kept()["v"] == 0
    assert len(deltas.gates()) == 4 and len(deltas.values()) == 2


def test_openness_by_hand():
    deltas = SparseDeltas({"w": torch.zeros(2, 2)})
    with torch.no_grad():
        deltas.changes["w"].logit.copy_(torch.tensor([[0.0, 0.0], [100.0, -100.0]]))
        deltas.changes["w"].group.fill_(0.0)
    assert float(deltas.openness().detach()) == pytest.approx((0.5 + 0.5 + 1 + 0 + 0.5) / 4)
