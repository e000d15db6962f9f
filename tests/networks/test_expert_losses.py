"""Mutual information and balance: identities, bounds and gradients."""

from __future__ import annotations

import math

import pytest
import torch

from mtlbench.errors import MethodError
from mtlbench.networks.experts import (
    LayerStatistics,
    Routing,
    importance_variation,
    load_balance,
    mutual_information,
    task_balance,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def table(tasks, experts):
    return torch.rand(tasks, experts, dtype=torch.float64).pow(3).softmax(1)


def prior(tasks):
    return torch.rand(tasks, dtype=torch.float64).softmax(0)


def entropy(p):
    return -torch.special.xlogy(p, p).sum()


SIZES = [(1, 4), (2, 3), (5, 16), (16, 5), (13, 24), (4, 1)]


@pytest.mark.parametrize(("tasks", "experts"), SIZES)
def test_every_form_of_the_definition_agrees(tasks, experts):
    p, w = table(tasks, experts), prior(tasks)
    found, mixture = mutual_information(p, w).item(), w @ p
    divergence = (w[:, None] * p * (p / mixture).log()).sum().item()
    joint = w[:, None] * p
    by_joint = (entropy(w) + entropy(mixture) - entropy(joint)).item()
    posterior = joint / mixture
    by_tasks = entropy(w).item() - sum(mixture[e].item() * entropy(posterior[:, e]).item() for e in range(experts))
    for other in (divergence, by_joint, by_tasks):
        assert found == pytest.approx(other, abs=1e-10)
    most = min(entropy(w).item(), entropy(mixture).item())
    assert -1e-12 <= found <= most + 1e-12 <= math.log(min(tasks, experts)) + 1e-9
    torch.testing.assert_close(mutual_information(p), mutual_information(p, torch.full_like(w, 1 / tasks)))


def test_zero_exactly_where_all_tasks_agree():
    row = table(1, 6)
    assert mutual_information(row.expand(4, 6), prior(4)).item() == pytest.approx(0, abs=1e-15)
    assert mutual_information(row).item() == 0
    assert mutual_information(torch.ones(5, 1)).item() == 0
    changed = row.repeat(4, 1)
    changed[2] = changed[2].flip(0)
    assert mutual_information(changed).item() > 1e-4


def test_disjoint_supports_tell_the_task_whatever_the_spread_inside():
    p = torch.zeros(3, 9, dtype=torch.float64)
    for task in range(3):
        p[task, 3 * task : 3 * task + 3] = table(1, 3)
    assert mutual_information(p).item() == pytest.approx(math.log(3))


def test_more_tasks_than_experts():
    """16 tasks on 5 experts cannot load them equally: 1.602 < log 5 = 1.609; 15 on 5 can."""
    chosen = torch.arange(16) % 5
    assert mutual_information(torch.eye(5)[chosen]).item() == pytest.approx(1.6021, abs=1e-4)
    assert mutual_information(torch.eye(5)[chosen[:15]]).item() == pytest.approx(math.log(5))


def test_rows_flat_over_m_experts_cannot_tell_more_than_log_e_over_m():
    p = torch.zeros(6, 12, dtype=torch.float64)
    for row in p:
        row[torch.randperm(12)[:4]] = 0.25
    assert mutual_information(p).item() <= math.log(12 / 4) + 1e-12


def test_order_merging_and_splitting():
    p, w = table(4, 6), prior(4)
    found = mutual_information(p, w)
    order, experts = torch.randperm(4), torch.randperm(6)
    torch.testing.assert_close(mutual_information(p[order][:, experts], w[order]), found)
    merged = torch.cat((p[:, :1] + p[:, 1:2], p[:, 2:]), 1)
    assert mutual_information(merged, w) <= found + 1e-12
    split = torch.cat((0.3 * p[:, :1], 0.7 * p[:, :1], p[:, 1:]), 1)
    torch.testing.assert_close(mutual_information(split, w), found)


def test_gradient():
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mutual_information(x.softmax(1), None), logits)
    same = torch.randn(1, 5, dtype=torch.float64).repeat(3, 1).requires_grad_()
    mutual_information(same.softmax(1)).backward()
    assert same.grad.abs().max() < 1e-15  # a saddle: only the tasks break the symmetry
    before = mutual_information(logits.softmax(1))
    (gradient,) = torch.autograd.grad(before, logits)
    assert mutual_information((logits + 0.1 * gradient).softmax(1)) > before


def test_exact_zeros_and_tasks_without_weight():
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    value = mutual_information(p)
    value.backward()
    assert value.item() == pytest.approx(math.log(2)) and p.grad.isfinite().all()
    rows, absent = table(3, 4), torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(mutual_information(rows, absent), mutual_information(rows[:2]))


def test_averaging_tables_never_adds_information():
    a, b, w = table(4, 6), table(4, 6), prior(4)
    mean = (mutual_information(a, w) + mutual_information(b, w)) / 2
    assert mutual_information((a + b) / 2, w) <= mean + 1e-12


@pytest.mark.parametrize("sharp", [0.1, 1.0, 10.0])
def test_tokens_tell_at_least_as_much_of_the_expert_as_their_task_does(sharp):
    """ModuleFormer's information counts every token as a task of its own: more by what tokens of one task differ."""
    tasks, tokens, experts = 3, 20, 6
    shift = torch.randn(tasks, 1, experts, dtype=torch.float64)
    logits = (sharp * (shift + torch.randn(tasks, tokens, experts, dtype=torch.float64))).flatten(0, 1)
    gates, chosen = logits.softmax(1).topk(2)
    routing = Routing(logits, gates, chosen, tasks)
    of_tasks = mutual_information(LayerStatistics.of(routing, experts).probability)
    of_tokens = mutual_information(routing.probabilities)
    within = sum(mutual_information(p) for p in routing.probabilities.chunk(tasks)) / tasks
    assert 0 < of_tasks < of_tokens
    torch.testing.assert_close(of_tokens, of_tasks + within, rtol=1e-10, atol=1e-12)


def test_low_precision_is_computed_in_float32():
    p = table(3, 8).to(torch.bfloat16)
    torch.testing.assert_close(mutual_information(p), mutual_information(p.float()))


@pytest.mark.parametrize(("shape", "weights"), [((3,), None), ((3, 4), torch.ones(4)), ((2, 3, 4), None)])
def test_shapes_that_do_not_fit(shape, weights):
    with pytest.raises(MethodError, match=r"\(T, E\) table"):
        mutual_information(torch.ones(shape), weights)


def test_balance_of_the_mixture_and_of_each_task():
    """Each task keeps to its own half of the experts: balanced over the mixture, not within a task."""
    rows, half = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]), torch.tensor([0.5, 0.5])
    assert load_balance(rows, rows, half).item() == pytest.approx(1.0)
    assert load_balance(rows[:1], rows[:1], half[:1] * 2).item() == pytest.approx(2.0)
    assert task_balance(rows, rows, half).item() == pytest.approx(2.0)
    flat = torch.full((2, 4), 0.25)
    assert task_balance(flat, flat, half).item() == pytest.approx(1.0)


def test_importance_variation_is_squared_deviation_over_squared_mean():
    # Row (1, 3): mean 2, unbiased variance 2 -> 0.5. Row (2, 2): 0.
    importance = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    assert importance_variation(importance, torch.tensor([0.25, 0.75])).item() == pytest.approx(0.125)
    assert importance_variation(torch.ones(2, 1), torch.tensor([0.5, 0.5])).item() == 0
