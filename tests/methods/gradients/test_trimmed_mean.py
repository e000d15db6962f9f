"""Trimmed mean: golden, outliers, agreement with SciPy, blocks of columns, and steps with few tasks."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import trim_mean
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import rows
from tests.support.jacobians import KINDS, jacobian

FOUR = ((1.0, 0.0), (1.1, 0.0), (0.9, 0.1), (-5.0, 5.0))


def made(**arguments):
    return make_balancer("trimmed_mean", scale="mean", **arguments)


def test_golden_and_outliers():
    assert_close(made().direction(rows(*FOUR)), rows(0.95, 0.05))
    worse = rows(*FOUR[:3], (-1e9, 1e9))
    assert_close(made().direction(worse), rows(0.95, 0.05))
    assert_close(made(trim=0).direction(rows(*FOUR)), rows(*FOUR).mean(0))
    assert_close(make_balancer("trimmed_mean").direction(rows(*FOUR)), rows(3.8, 0.2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trim", [1, 2])
def test_it_is_scipy_and_treats_columns_alone(kind, trim):
    gradients = jacobian(kind, 7, 3)
    found = made(trim=trim).direction(gradients)
    assert_close(found, torch.from_numpy(trim_mean(gradients.numpy(), trim / 7 + 1e-9)))
    parts = [made(trim=trim).direction(part) for part in gradients.split(13, dim=1)]
    assert_close(torch.cat(parts), found)


def test_few_tasks_are_trimmed_less():
    assert_close(made(trim=3).direction(rows((1.0,), (2.0,), (9.0,))), rows(2.0))
    assert_close(made().direction(rows((1.0,), (3.0,))), rows(2.0))
    assert_close(made().direction(rows([3.0, -4.0])), rows(3.0, -4.0))


def test_arguments_out_of_range():
    with pytest.raises(MethodError, match="trimmed_mean: trim must be at least 0. Found -1"):
        make_balancer("trimmed_mean", trim=-1)
