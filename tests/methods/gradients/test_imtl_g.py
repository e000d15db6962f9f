"""IMTL-G: goldens, equal projections, the paper's closed form, and gradients that depend on each other."""

from __future__ import annotations

import math

import pytest
import torch
import torchjd.aggregation
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, ORTHOGONAL, gramian_of, rows
from tests.support.jacobians import INDEPENDENT, KINDS, jacobian, unit


def mean(**arguments):
    return make_balancer("imtl_g", scale="mean", **arguments)


def closed_form(gradients):
    """The paper's solution: Σ α = 1 and the differences of unit gradients orthogonal to d."""
    units = unit(gradients)
    differences, u = gradients[0] - gradients[1:], units[0] - units[1:]
    rest = torch.linalg.solve(u @ differences.T, u @ gradients[0])
    return torch.cat([1 - rest.sum(0, keepdim=True), rest])


def test_goldens():
    assert_close(mean().direction(rows(*CONFLICT)), rows(0.171573, 0.414214), atol=1e-6, rtol=0)
    assert_close(mean().direction(rows(*ORTHOGONAL)), rows(2 / 3, 2 / 3))


@pytest.mark.parametrize("tasks", [2, 3, 7, 40])
@pytest.mark.parametrize("kind", [*INDEPENDENT, "twins"])
def test_projections_are_equal_and_weights_sum_to_one(kind, tasks):
    gradients = jacobian(kind, tasks)
    weights = mean().weights(gradients @ gradients.T)
    projections = unit(gradients) @ (weights @ gradients)
    assert weights.sum().item() == pytest.approx(1)
    assert projections[0].abs() > 1e-6 and ((projections / projections[0] - 1).abs() < 1e-5).all()


@pytest.mark.parametrize("tasks", [2, 3, 7, 40])
@pytest.mark.parametrize("kind", INDEPENDENT)
def test_it_is_the_closed_form_of_the_paper(kind, tasks):
    gradients = jacobian(kind, tasks, seed=1)
    assert_close(mean().direction(gradients), closed_form(gradients) @ gradients, rtol=1e-5, atol=0)


@pytest.mark.parametrize("tasks", [2, 3, 7, 40])
@pytest.mark.parametrize("kind", ["plain", "twins", "zero row"])
def test_it_is_torchjd_where_gradients_are_well_conditioned(kind, tasks):
    gradients = jacobian(kind, tasks, seed=2)
    assert_close(mean().direction(gradients), torchjd.aggregation.IMTLG()(gradients), rtol=1e-7, atol=1e-9)


def test_torchjd_loses_small_gradients():
    # Why the rule is written here: the fact that the docstring states.
    gradients = jacobian("plain", 5) * torch.logspace(-6, 3, 5).double()[:, None]
    theirs = unit(gradients) @ torchjd.aggregation.IMTLG()(gradients)
    ours = unit(gradients) @ mean().direction(gradients)
    assert (theirs / theirs[-1]).min() < 0.5
    assert_close(ours / ours[-1], torch.ones(5).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("tasks", [3, 7, 40])
def test_dependent_gradients_take_the_nearest_direction(tasks):
    gradients = jacobian("dependent", tasks)
    nearest = torch.linalg.lstsq(unit(gradients), torch.ones(tasks, 1).double(), driver="gelsd").solution[:, 0]
    found = mean().direction(gradients)
    assert torch.cosine_similarity(found, nearest, dim=0).abs().item() == pytest.approx(1, abs=1e-9)
    assert mean().weights(gradients @ gradients.T).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_a_task_keeps_the_direction(kind):
    gradients = jacobian(kind, 6, seed=3)
    factors = torch.tensor([1.0, 1e-2, 30.0, 5.0, 0.2, 7.0]).double()[:, None]
    one, other = mean().direction(gradients), mean().direction(factors * gradients)
    # Up to its sign, which Σ w = 1 decides.
    assert torch.cosine_similarity(one, other, dim=0).abs().item() == pytest.approx(1, abs=1e-9)


def test_parallel_gradients_are_the_limit_of_nearly_parallel_ones():
    near = rows((1.0, 0.0), (2 * math.cos(1e-4), 2 * math.sin(1e-4)))
    for gradients in (near, rows((1.0, 0.0), (2.0, 0.0))):
        assert_close(mean().weights(gramian_of(gradients)), rows(2 / 3, 1 / 3), rtol=1e-6, atol=0)


def test_a_negative_sum_turns_the_direction_against_every_task():
    # p = C⁺ 1 is negative for the task between the others, and its gradient is small: the paper's rule, as it is.
    gradients = rows((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.007, 0.007, 0.001))
    weights = mean().weights(gramian_of(gradients))
    assert weights.sum().item() == pytest.approx(1)
    assert_close(weights, closed_form(gradients), rtol=1e-6, atol=0)
    assert (gradients @ (weights @ gradients) < 0).all()


def test_zero_opposite_and_single_gradients():
    assert_close(mean().direction(torch.zeros(3, 2)), torch.zeros(2))
    assert_close(mean().direction(rows((1.0, 2.0), (-3.0, -6.0))), rows(0.0, 0.0))
    third = 2 * math.pi / 3
    star = rows(*((math.cos(i * third), math.sin(i * third)) for i in range(3)))
    assert_close(mean().direction(star), rows(0.0, 0.0))
    assert_close(make_balancer("imtl_g").direction(rows([3.0, -4.0])), rows(3.0, -4.0))
    # A task without a gradient does not count.
    assert_close(mean().direction(rows((1.0, 0.0), (0.0, 0.0), (0.0, 2.0))), rows(2 / 3, 2 / 3))


def test_float32_does_not_take_rounding_for_a_direction():
    exact = jacobian("plain", 2, columns=5000)
    exact = torch.cat([exact, exact.sum(0, keepdim=True)])
    single = exact.float()
    noisy = gramian_of(single)  # Computed in float32, as the rows are: the least eigenvalue is noise.
    weights = mean().weights(noisy.float())
    assert_close((weights.double() @ exact), mean().direction(exact), rtol=1e-2, atol=1e-3)


def test_scales_and_the_order_of_tasks():
    gradients = jacobian("plain", 5)
    order = [3, 0, 4, 1, 2]
    weights = mean().weights(gradients @ gradients.T)
    assert_close(mean().weights(gradients[order] @ gradients[order].T), weights[order])
    assert_close(make_balancer("imtl_g").weights(gradients @ gradients.T), 5 * weights)
    assert mean().heads == "unit" and mean(heads="weighted").heads == "weighted"
    with pytest.raises(MethodError, match="scale"):
        make_balancer("imtl_g", scale="total")
