"""GradVac: goldens, agreement with the vector form and with TorchJD, running similarities, degenerate gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close
from torchjd.aggregation import GradVacWeighting

from mtlbench.balancing import make_balancer
from mtlbench.balancing.rules.gradvac import orders
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, ORTHOGONAL, context, gramian_of, rows
from tests.support.jacobians import KINDS, jacobian
from tests.support.vaccine_reference import by_vectors


def made(tasks=2, targets=None, **arguments):
    rule = make_balancer("gradvac", **arguments)
    rule.configure(tasks)
    rule.double()
    if targets is not None:
        rule.targets.copy_(targets)
    return rule


def similar(kind, tasks, seed):
    """Gradients with something in common, so that targets differ from 0."""
    found = jacobian(kind, tasks, seed)
    return found + (found != 0).any(1, keepdim=True) * found.norm(dim=1, keepdim=True) / 6


def weights(rule, gradients, seed=0, active=None):
    ctx = context(torch.ones(len(gradients)), seed=seed, active=active)
    return rule.gradient_weights(gramian_of(gradients), ctx)


def test_goldens():
    # Row 1 may be as unlike row 0 as it wants to: it stays (-1, 1), and the rest is the golden of row 0.
    for target, expected in ((0.0, (0.5, 0.5)), (0.5, (0.211325, 0.788675))):
        rule = made(targets=rows((0.0, target), (-1.0, 0.0)))
        own = rule.direction(rows(*CONFLICT)) - rows(-1.0, 1.0)
        assert_close(own, rows(*expected), atol=1e-6, rtol=0)
        assert torch.cosine_similarity(own, rows(-1.0, 1.0), 0).item() == pytest.approx(target, abs=1e-9)


def test_similarities_follow_the_gradients():
    rule, cosine = made(beta=0.25), -math.sqrt(0.5)
    rule.direction(rows(*CONFLICT))
    assert_close(rule.targets, rows((0.0, 0.25 * cosine), (0.25 * cosine, 0.0)))
    rule.direction(rows((1.0, 0.0), (1.0, 1.0)))  # Nothing to correct, and still it counts.
    assert_close(
        rule.targets[0, 1], 0.75 * 0.25 * torch.tensor(cosine) - 0.25 * torch.tensor(cosine), check_dtype=False
    )


def test_the_first_step_of_two_tasks_is_pcgrad():
    for seed in range(10):
        gradients = jacobian("plain", 2, seed, columns=3)
        assert_close(made().direction(gradients), make_balancer("pcgrad").direction(gradients), atol=1e-10, rtol=0)
    assert_close(made().direction(rows(*ORTHOGONAL)), rows(1.0, 2.0))


@pytest.mark.parametrize("tasks", [2, 3, 7, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_vector_form(kind, tasks):
    rule, targets = made(tasks, beta=0.3), torch.zeros(tasks, tasks, dtype=torch.float64)
    for step in range(4):
        gradients = similar(kind, tasks, step)
        order = orders(tasks, torch.Generator().manual_seed(step))
        expected = by_vectors(gradients, targets, 0.3, order)
        found = weights(rule, gradients, step) @ gradients
        assert_close(found, expected, rtol=1e-6, atol=1e-7 * float(gradients.norm()))
        assert_close(rule.targets, targets, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tasks", [2, 3, 7])
@pytest.mark.parametrize("kind", ["plain", "spread"])
def test_it_is_torchjd_in_the_same_order(kind, tasks, monkeypatch):
    rule, oracle = made(tasks), GradVacWeighting(beta=0.5, eps=0.0)
    for step in range(5):
        gramian = gramian_of(similar(kind, tasks, step))
        order = torch.from_numpy(orders(tasks, torch.Generator().manual_seed(step)).copy())
        # TorchJD numbers the others from 0, without the task itself.
        places = iter(order - (order > torch.arange(tasks)[:, None]).long())
        monkeypatch.setattr(torch, "randperm", lambda n, places=places: next(places))
        expected = oracle(gramian)
        monkeypatch.undo()
        found = rule.gradient_weights(gramian, context(torch.ones(tasks), seed=step))
        assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert rule.targets.abs().max() > 0.1


def test_orders_are_permutations_of_the_others_and_all_occur():
    generator = torch.Generator().manual_seed(0)
    drawn = [orders(4, generator) for _ in range(600)]
    for order in drawn[:20]:
        assert [sorted([i, *row]) for i, row in enumerate(order.tolist())] == [[0, 1, 2, 3]] * 4
    counts = torch.unique(torch.tensor([tuple(order[2]) for order in drawn]), dim=0, return_counts=True)[1]
    # Six orders, 100 times each; standard deviation 9.
    assert len(counts) == 6 and counts.min() > 55 and counts.max() < 145
    assert orders(1, generator).shape == (1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_may_change_places(kind):
    # With two tasks there is one order only.
    gradients, rule, turned = similar(kind, 2, 0), made(), made()
    for _ in range(3):
        found, other = weights(rule, gradients), weights(turned, gradients.flip(0))
        assert_close(found, other.flip(0))
    assert_close(rule.targets, turned.targets.flip(0, 1))


def test_degenerate_gradients():
    assert_close(made(3).direction(torch.zeros(3, 2).double()), torch.zeros(2).double())
    assert_close(made(1).direction(rows([3.0, -4.0])), rows(3.0, -4.0))
    rule = made(3)
    assert_close(rule.direction(rows((1.0, 0.0), (0.0, 0.0), (-1.0, 1.0))), rows(0.5, 1.5))
    assert rule.targets[1].abs().max() == rule.targets[:, 1].abs().max() == 0  # No cosine with a gradient of zero.
    # Opposite gradients take each other away; of what is left no cosine is taken.
    rule = made(3)
    for _ in range(3):
        assert_close(rule.direction(rows((1.0, 2.0), (-1.0, -2.0), (0.0, 0.0))), rows(0.0, 0.0))
        assert rule.targets.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_tasks_stay_equal_to_their_sum(dtype):
    rule = make_balancer("gradvac")
    for step in range(80):
        gradients = jacobian("plain", 1, step)[:, :7].to(dtype).expand(3, 7).contiguous()
        assert_close(rule.direction(gradients), 3 * gradients[0])
    # The target is 1 by now, out of reach for gradients that differ: the correction is large and finite.
    found = rule.direction(torch.eye(3, 7, dtype=dtype))
    assert found.isfinite().all() and found.abs().max() < 1e7


def test_absent_tasks_keep_their_similarities():
    rule, pair, gradients = made(3), made(2), similar("plain", 3, 0)
    weights(rule, gradients)
    kept = rule.targets.clone()
    pair.targets.copy_(kept[::2, ::2])
    found = weights(rule, gradients[::2], active=(0, 2))
    assert_close(found, weights(pair, gradients[::2]))
    assert torch.equal(rule.targets[1], kept[1]) and torch.equal(rule.targets[:, 1], kept[:, 1])
    assert_close(rule.targets[::2, ::2], pair.targets)


def test_state_is_in_the_checkpoint():
    rule, other = made(3), made(3)
    for step in range(3):
        weights(rule, similar("plain", 3, step), step)
    other.load_state_dict(rule.state_dict())
    for step in range(3, 6):
        gradients = similar("plain", 3, step)
        assert torch.equal(weights(rule, gradients, step), weights(other, gradients, step))
    assert not list(rule.parameters())


def test_scale_and_arguments():
    gradients = rows(*CONFLICT)
    assert_close(made(scale="mean").direction(gradients), made().direction(gradients) / 2)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(MethodError, match="gradvac: beta must be in"):
            make_balancer("gradvac", beta=wrong)
