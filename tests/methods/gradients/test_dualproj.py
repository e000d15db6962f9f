"""DualProj: the projected mean by hand, no task gets worse, and the projection found by trying all faces."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, ORTHOGONAL, context, gramian_of, rows
from tests.support.jacobians import KINDS, jacobian
from tests.support.projections_by_hand import cone

UNEVEN = ((1.0, 0.0), (-4.0, 1.0))  # Mean (-1.5, 0.5): the first task would get worse.


def exact(scale="mean"):
    return make_balancer("dualproj", reg=0.0, scale=scale)


def test_projections_by_hand():
    assert_close(exact().direction(rows(*UNEVEN)), rows(0.0, 0.5))
    assert_close(exact().weights(gramian_of(rows(*UNEVEN))), rows(2.0, 0.5))
    assert_close(exact("sum").direction(rows(*UNEVEN)), rows(0.0, 1.0))
    # These means make no task worse.
    assert_close(exact().direction(rows(*CONFLICT)), rows(0.0, 0.5))
    assert_close(exact().direction(rows(*ORTHOGONAL)), rows(0.5, 1.0))


def test_regularisation_by_hand():
    # M / 18 + ½ I = [[10, -4], [-4, 26]] / 18; v_2 = ½, and 10 v_1 = 4 v_2 is below ½: nothing is raised.
    assert_close(make_balancer("dualproj", reg=0.5, scale="mean").weights(gramian_of(rows(*UNEVEN))), rows(0.5, 0.5))
    # With 1/18 it is [[2, -4], [-4, 18]] / 18: v_1 = 4/2 · ½.
    found = make_balancer("dualproj", reg=1 / 18, scale="mean").weights(1e-20 * gramian_of(rows(*UNEVEN)))
    assert_close(found, rows(1.0, 0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_nearest_direction_that_harms_nobody(kind):
    for seed in range(10):
        gradients = jacobian(kind, 5, seed, columns=7)
        gradients[0] *= 5  # One task rules the mean.
        expected = torch.from_numpy(cone(gradients.numpy(), gradients.mean(0).numpy()))
        assert_close(exact().direction(gradients), expected, rtol=0, atol=1e-8 * gradients.norm().item())


@pytest.mark.parametrize("tasks", [2, 3, 7, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_no_task_gets_worse(kind, tasks):
    gradients = jacobian(kind, tasks)
    gradients[0] *= 5
    found = exact().direction(gradients)
    scale = gradients.norm(dim=1).clamp(min=1e-9) * gradients.norm(dim=1).mean()
    assert ((gradients @ found) / scale >= -1e-9).all()


def test_zero_single_equal_and_opposite_gradients():
    for rule, tolerance in ((exact("sum"), 1e-12), (make_balancer("dualproj"), 1e-2)):
        assert_close(rule.direction(torch.zeros(3, 2)), torch.zeros(2))
        assert_close(rule.direction(rows([3.0, -4.0])), rows(3.0, -4.0))
        assert_close(rule.direction(rows((1.0, 2.0), (1.0, 2.0))), rows(2.0, 4.0))
        assert_close(rule.direction(rows((1.0, 2.0), (-3.0, -6.0))), rows(0.0, 0.0), rtol=0, atol=tolerance)
    assert_close(exact().direction(rows((1.0, 0.0), (0.0, 0.0), (-4.0, 1.0))), rows(0.0, 1 / 3))


def test_only_active_tasks_count():
    rule = exact()
    rule.configure(4)
    found = rule.gradient_weights(gramian_of(rows(*UNEVEN)), context(rows(1.0, 1.0), active=(1, 3)))
    assert_close(found, rows(2.0, 0.5))


def test_tasks_may_change_places():
    gradients, order = jacobian("plain", 5), [3, 0, 4, 1, 2]
    gradients[0] *= 5
    assert_close(exact().weights(gramian_of(gradients[order])), exact().weights(gramian_of(gradients))[order])


@pytest.mark.parametrize("reg", [-1e-9, float("nan"), float("inf")])
def test_reg_out_of_range_is_refused(reg):
    with pytest.raises(MethodError, match="dualproj: reg must be at least 0 and finite"):
        make_balancer("dualproj", reg=reg)
