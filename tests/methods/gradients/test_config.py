"""ConFIG: goldens, TorchJD's form from the Jacobian, and what the direction promises."""

from __future__ import annotations

import pytest
import torch
import torchjd.aggregation
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from tests.support.balancers import CONFLICT, ORTHOGONAL, gramian_of, rows
from tests.support.jacobians import INDEPENDENT, KINDS, jacobian, unit


def test_goldens():
    rule = make_balancer("config")
    assert_close(rule.direction(rows(*CONFLICT)), rows(0.353553, 0.853553), atol=1e-6, rtol=0)
    assert_close(rule.direction(rows(*ORTHOGONAL)), rows(1.5, 1.5))


@pytest.mark.parametrize("tasks", [2, 3, 7, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_torchjd(kind, tasks):
    gradients = jacobian(kind, tasks)
    assert_close(make_balancer("config").direction(gradients), torchjd.aggregation.ConFIG()(gradients))


@pytest.mark.parametrize("tasks", [2, 5, 40])
@pytest.mark.parametrize("kind", INDEPENDENT)
def test_cosines_are_equal_and_the_length_is_that_of_the_projections(kind, tasks):
    gradients = jacobian(kind, tasks, seed=1)
    direction = make_balancer("config").direction(gradients)
    cosines = unit(gradients) @ direction / direction.norm()
    assert cosines[0] > 0
    assert_close(cosines, cosines[0].expand(tasks))
    assert_close(direction.norm(), (gradients @ direction / direction.norm()).sum())


def test_it_goes_where_imtl_g_goes_but_never_against_all():
    gradients = jacobian("plain", 5)
    pair = [make_balancer(name).direction(gradients) for name in ("config", "imtl_g")]
    assert torch.cosine_similarity(*pair, dim=0).item() == pytest.approx(1)
    # Here Σ w = 1 turns IMTL-G around (see its own test).
    gradients = rows((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.007, 0.007, 0.001))
    pair = [make_balancer(name).direction(gradients) for name in ("config", "imtl_g")]
    assert torch.cosine_similarity(*pair, dim=0).item() == pytest.approx(-1)
    assert (gradients @ pair[0] > 0).all()


def test_zero_opposite_single_and_equal_gradients():
    rule = make_balancer("config")
    assert_close(rule.direction(torch.zeros(3, 2)), torch.zeros(2))
    assert_close(rule.direction(rows((1.0, 2.0), (-3.0, -6.0))), rows(0.0, 0.0))
    assert_close(rule.direction(rows([3.0, -4.0])), rows(3.0, -4.0))
    assert_close(rule.direction(rows((1.0, 0.0), (0.0, 0.0), (0.0, 2.0))), rows(1.5, 1.5))
    equal = rows((1.0, 2.0), (1.0, 2.0), (1.0, 2.0))
    assert_close(rule.direction(equal), rows(3.0, 6.0))
    assert_close(make_balancer("config", scale="mean").direction(equal), rows(1.0, 2.0))


def test_float32_does_not_take_rounding_for_a_direction():
    exact = jacobian("plain", 2, columns=5000)
    exact = torch.cat([exact, exact.sum(0, keepdim=True)])
    noisy = gramian_of(exact.float())  # Computed in float32, as the rows are: the least eigenvalue is noise.
    weights = make_balancer("config").weights(noisy.float())
    assert_close(weights.double() @ exact, torchjd.aggregation.ConFIG()(exact), rtol=1e-2, atol=1e-3)


def test_tasks_may_change_places():
    gradients, order = jacobian("spread", 5), [3, 0, 4, 1, 2]
    rule = make_balancer("config")
    assert_close(rule.weights(gradients[order] @ gradients[order].T), rule.weights(gradients @ gradients.T)[order])
