"""Aligned-MTL: goldens, the form from singular values, TorchJD, and the rank in float32."""

from __future__ import annotations

import pytest
import torch
import torchjd.aggregation
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, ORTHOGONAL, gramian_of, rows
from tests.support.jacobians import KINDS, jacobian

MODES = ("min", "median", "rmse")


def by_singular_values(gradients, mode, rank):
    """G = U S Vᵀ ⇒ d = σ V Uᵀ 1: never squares a singular value."""
    u, s, v = torch.linalg.svd(gradients, full_matrices=False)
    u, s, v = u[:, :rank], s[:rank], v[:rank]
    # Of an even number, TorchJD's median is the lower one.
    target = {"min": s[-1], "median": s.flip(0)[(rank - 1) // 2], "rmse": (s**2).mean().sqrt()}[mode]
    return target * u.sum(0) @ v


def rank_of(kind, tasks):
    return {"zero row": tasks - 1, "twins": tasks - 1, "dependent": (tasks + 1) // 2}.get(kind, tasks)


def test_goldens():
    rule = make_balancer("aligned_mtl")
    assert_close(rule.direction(rows(*CONFLICT)), rows(0.276393, 0.829180), atol=1e-6, rtol=0)
    assert_close(rule.direction(rows(*ORTHOGONAL)), rows(1.0, 1.0))
    # Eigenvalues 1 and 4: the mean is 2.5.
    assert_close(make_balancer("aligned_mtl", alignment="rmse").direction(rows(*ORTHOGONAL)), rows(2.5, 2.5).sqrt())


@pytest.mark.parametrize("tasks", [2, 3, 7, 40])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_it_aligns_singular_values(mode, kind, tasks):
    gradients = jacobian(kind, tasks)
    expected = by_singular_values(gradients, mode, rank_of(kind, tasks))
    found = make_balancer("aligned_mtl", alignment=mode).direction(gradients)
    # Of norms six orders apart the squares keep about four digits.
    loose = 1e-2 if kind == "spread" else 1e-9
    assert_close(found / expected.norm(), expected / expected.norm(), rtol=0, atol=loose)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["plain", "zero row", "twins", "dependent"])
def test_it_is_torchjd_on_sum_scale(kind, mode):
    gradients = jacobian(kind, 5, seed=1)
    theirs = torchjd.aggregation.AlignedMTL(scale_mode=mode)(gradients)
    assert_close(make_balancer("aligned_mtl", alignment=mode).direction(gradients), 5 * theirs)
    assert_close(make_balancer("aligned_mtl", alignment=mode, scale="mean").direction(gradients), theirs)


def test_the_global_generator_and_the_draws_do_not_matter():
    gradients, rule = jacobian("plain", 4), make_balancer("aligned_mtl")
    state = torch.random.get_rng_state()
    assert torch.equal(rule.direction(gradients, seed=1), rule.direction(gradients, seed=2))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_rank_is_told_in_the_precision_of_the_losses():
    exact = jacobian("plain", 2, columns=5000)
    exact = torch.cat([exact, exact.sum(0, keepdim=True)])
    noisy = gramian_of(exact.float())  # Computed in float32, as the rows are: the least eigenvalue is noise.
    weights = make_balancer("aligned_mtl").weights(noisy.float()).double()
    assert_close(weights @ exact, by_singular_values(exact, "min", 2), rtol=1e-2, atol=1e-3)
    # What the docstring says of float32.
    apart = torch.tensor([[1.0, 0.0], [0.0, 1 / 3000]])
    assert make_balancer("aligned_mtl").direction(apart).tolist() == [1.0, 0.0]
    assert_close(make_balancer("aligned_mtl").direction(apart.double()), rows(1 / 3000, 1 / 3000))


def test_zero_single_and_equal_gradients():
    rule = make_balancer("aligned_mtl")
    assert_close(rule.direction(torch.zeros(3, 2)), torch.zeros(2))
    assert_close(rule.direction(rows([3.0, -4.0])), rows(3.0, -4.0))
    assert_close(rule.direction(rows((1.0, 2.0), (1.0, 2.0))), rows(2.0, 4.0))
    assert_close(rule.direction(rows((1.0, 2.0), (-1.0, -2.0))), rows(0.0, 0.0))
    # So small that their products are 0 in float32.
    assert_close(1e25 * rule.direction(1e-25 * rows(*ORTHOGONAL).float()), torch.ones(2))


def test_tasks_may_change_places():
    gradients, order = jacobian("plain", 5), [3, 0, 4, 1, 2]
    rule = make_balancer("aligned_mtl", alignment="median")
    assert_close(rule.weights(gradients[order] @ gradients[order].T), rule.weights(gradients @ gradients.T)[order])


def test_an_unknown_alignment_is_refused():
    with pytest.raises(MethodError, match=r"'max'.*Known: median, min, rmse"):
        make_balancer("aligned_mtl", alignment="max")
