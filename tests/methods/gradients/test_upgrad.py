"""UPGrad: goldens, no task gets worse, and every gradient's projection found by trying all faces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, ORTHOGONAL, context, gramian_of, rows
from tests.support.jacobians import KINDS, jacobian
from tests.support.projections_by_hand import cone


def exact(scale="mean"):
    return make_balancer("upgrad", reg=0.0, scale=scale)


def test_goldens():
    assert_close(exact().direction(rows(*CONFLICT)), rows(0.25, 0.75))
    assert_close(exact().direction(rows(*ORTHOGONAL)), rows(0.5, 1.0))
    assert_close(exact("sum").direction(rows(*CONFLICT)), rows(0.5, 1.5))


def test_regularisation_by_hand():
    # M / 3 + ½ I = [[5, -2], [-2, 7]] / 6: task 1 raises v_2 to 2/7 · ½, task 2 raises v_1 to 2/5 · ½.
    weights = make_balancer("upgrad", reg=0.5, scale="mean").weights(gramian_of(rows(*CONFLICT)))
    assert_close(weights, rows(0.7, 0.5 + 1 / 7))
    # It is relative to the trace: the size of the gradients does not matter, however small.
    small = make_balancer("upgrad", reg=0.5, scale="mean").weights(1e-20 * gramian_of(rows(*CONFLICT)))
    assert_close(small, weights)
    assert_close(make_balancer("upgrad").direction(rows(*CONFLICT)), rows(0.5, 1.5), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_mean_of_all_projections(kind):
    for seed in range(5):
        gradients = jacobian(kind, 5, seed, columns=7)
        matrix = gradients.numpy()
        expected = torch.from_numpy(np.mean([cone(matrix, row) for row in matrix], axis=0))
        assert_close(exact().direction(gradients), expected, rtol=0, atol=1e-8 * gradients.norm().item())


@pytest.mark.parametrize("tasks", [2, 3, 7, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_no_task_gets_worse(kind, tasks):
    gradients = jacobian(kind, tasks)
    gradients = gradients - 0.9 * gradients.mean(0)  # More conflict.
    found = exact().direction(gradients)
    scale = gradients.norm(dim=1).clamp(min=1e-9) * gradients.norm(dim=1).mean()
    assert ((gradients @ found) / scale >= -1e-9).all()


def test_without_conflict_it_is_the_mean():
    gradients = jacobian("plain", 6).abs()
    assert torch.equal(exact().weights(gramian_of(gradients)), torch.full((6,), 1 / 6, dtype=torch.float64))


def test_zero_single_equal_and_opposite_gradients():
    for rule, tolerance in ((exact("sum"), 1e-12), (make_balancer("upgrad"), 1e-2)):
        assert_close(rule.direction(torch.zeros(3, 2)), torch.zeros(2))
        assert_close(rule.direction(rows([3.0, -4.0])), rows(3.0, -4.0))
        assert_close(rule.direction(rows((1.0, 2.0), (1.0, 2.0))), rows(2.0, 4.0))
        assert_close(rule.direction(rows((1.0, 2.0), (-1.0, -2.0))), rows(0.0, 0.0), rtol=0, atol=tolerance)
    with_zero = exact("sum").direction(rows((1.0, 0.0), (0.0, 0.0), (-1.0, 1.0)))
    assert_close(with_zero, rows(0.5, 1.5))
    assert exact().direction(torch.eye(2)).dtype == torch.float32


def test_only_active_tasks_count():
    rule = exact()
    rule.configure(4)
    found = rule.gradient_weights(gramian_of(rows(*CONFLICT)), context(rows(1.0, 1.0), active=(1, 3)))
    assert_close(found @ rows(*CONFLICT), rows(0.25, 0.75))


def test_tasks_may_change_places():
    gradients, order = jacobian("plain", 5), [3, 0, 4, 1, 2]
    assert_close(exact().weights(gramian_of(gradients[order])), exact().weights(gramian_of(gradients))[order])


@pytest.mark.parametrize("reg", [-1e-9, float("nan"), float("inf")])
def test_reg_out_of_range_is_refused(reg):
    with pytest.raises(MethodError, match="upgrad: reg must be at least 0 and finite"):
        make_balancer("upgrad", reg=reg)
