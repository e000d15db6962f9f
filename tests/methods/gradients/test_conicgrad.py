"""ConicGrad: goldens, the cone, agreement with a general solver, its ends, and degenerate gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, ORTHOGONAL, rows
from tests.support.jacobians import KINDS, jacobian


def direction(gradients, c=0.5):
    return make_balancer("conicgrad", c=c, scale="mean").direction(gradients)


@pytest.mark.parametrize(
    ("gradients", "c", "unit"),
    [
        (CONFLICT, 0.5, (0.447214, 0.894427)),
        (CONFLICT, 0.9, (0.435890, 0.9)),
        (ORTHOGONAL, 0.5, (0.894427, 0.447214)),
        (ORTHOGONAL, 0.9, (0.792364, 0.610049)),
    ],
)
def test_goldens(gradients, c, unit):
    found = direction(rows(*gradients), c)
    assert_close(found / found.norm(), rows(*unit), atol=1e-6, rtol=0)
    assert_close(found.norm(), rows(*gradients).mean(0).norm())


def by_slsqp(gradients, c):
    """The largest gain of the worst task over directions of length at most 1 in the cone."""
    mean = gradients.mean(0) / np.linalg.norm(gradients.mean(0))
    found = minimize(
        lambda x: -x[0],
        np.append((gradients @ mean).min(), mean),
        method="SLSQP",
        constraints=[
            {"type": "ineq", "fun": lambda x: gradients @ x[1:] - x[0]},
            {"type": "ineq", "fun": lambda x: 1 - x[1:] @ x[1:]},
            {"type": "ineq", "fun": lambda x: mean @ x[1:] - c * np.sqrt(x[1:] @ x[1:] + 1e-18)},
        ],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    return -found.fun


@pytest.mark.parametrize("tasks", [2, 3, 6])
@pytest.mark.parametrize("c", [0.1, 0.6, 0.95])
def test_no_direction_in_the_cone_helps_the_worst_task_more(tasks, c):
    for seed in range(5):
        gradients = jacobian("plain", tasks, seed, columns=8) + 0.3
        found = direction(gradients, c)
        mean = gradients.mean(0)
        assert found @ mean >= (c - 1e-9) * found.norm() * mean.norm()
        gain = (gradients @ found).min() / found.norm()
        best = by_slsqp(gradients.numpy(), c)
        assert gain >= best - 1e-6 if best > 1e-3 else torch.allclose(found, mean)


def test_the_ends_of_the_cone():
    gradients = jacobian("plain", 3, 2)
    assert_close(direction(gradients, 1.0), gradients.mean(0))
    near = direction(gradients, 1 - 1e-9)
    assert_close(near, gradients.mean(0), rtol=1e-3, atol=1e-3)
    shortest = make_balancer("mgda", scale="mean").direction(gradients)
    found = direction(gradients, 0.0)
    assert_close(found / found.norm(), shortest / shortest.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_gradients_are_finite_and_stay_in_the_cone(kind, dtype):
    for seed in range(3):
        gradients = jacobian(kind, 4, seed).to(dtype)
        found, mean = direction(gradients, 0.7), gradients.mean(0)
        assert found.isfinite().all() and found @ mean >= 0.69 * found.norm() * mean.norm()
        assert_close(found.norm(), mean.norm(), rtol=1e-3, atol=0)


def test_no_common_direction_is_the_mean():
    opposed = rows((1.0, 0.0), (-3.0, 0.0))
    assert_close(direction(opposed), opposed.mean(0))
    assert_close(direction(torch.zeros(3, 2).double()), rows(0.0, 0.0))
    assert_close(direction(rows((1.0, 0.0), (-1.0, 0.0))), rows(0.0, 0.0))
    assert_close(direction(rows((2.0, 1.0), (2.0, 1.0))), rows(2.0, 1.0))
    assert_close(direction(rows([3.0, -4.0])), rows(3.0, -4.0))


def test_scale_and_arguments():
    assert_close(make_balancer("conicgrad").direction(rows(*CONFLICT)), 2 * direction(rows(*CONFLICT)))
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(MethodError, match="conicgrad: c must be in"):
            make_balancer("conicgrad", c=value)
