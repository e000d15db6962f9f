"""Krum: goldens, agreement with TorchJD, ties, and steps with few tasks."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torchjd.aggregation import KrumWeighting

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import context, gramian_of, rows
from tests.support.jacobians import jacobian

FOUR = ((1.0, 0.0), (1.1, 0.0), (0.9, 0.1), (-5.0, 5.0))


def made(**arguments):
    return make_balancer("krum", scale="mean", **arguments)


def test_goldens():
    # With A = b + 3 the nearest two tie: TorchJD takes one of them, (1.1, 0) or (1, 0); here they share the place.
    assert_close(made(n_byzantine=1).direction(rows(*FOUR)), rows(1.05, 0.0))
    assert_close(made(n_byzantine=1, n_selected=2).direction(rows(*FOUR)), rows(1.05, 0.0))
    # Sums of the two nearest distances: .2414, .3236, .3650, 14.2 for b = 0.
    assert_close(made().direction(rows(*FOUR)), rows(1.0, 0.0))


@pytest.mark.parametrize(("byzantine", "selected"), [(0, 1), (1, 1), (1, 3), (2, 2)])
def test_it_is_torchjd_without_ties(byzantine, selected):
    theirs = KrumWeighting(byzantine, selected)
    for seed in range(20):
        gramian = gramian_of(jacobian("plain", 6, seed))
        assert_close(made(n_byzantine=byzantine, n_selected=selected).weights(gramian), theirs(gramian))


def test_ties_are_shared_whatever_the_order():
    gradients = jacobian("plain", 4, 1)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        found = made(n_byzantine=1).weights(gramian_of(gradients[order]))
        assert sorted(found.tolist()) == pytest.approx([0, 0, 0.5, 0.5])
    assert_close(made().weights(gramian_of(rows(*[(1.0, 2.0)] * 4))), torch.full((4,), 0.25).double())


def test_steps_with_few_tasks():
    ctx = context(torch.ones(3).double(), active=(0, 1, 2))
    rule = made(n_byzantine=2)
    rule.configure(5)
    assert_close(rule.gradient_weights(gramian_of(rows(*FOUR[:3])), ctx), rows(0.5, 0.5, 0.0))
    assert_close(made().direction(rows((1.0, 0.0), (3.0, 2.0))), rows(2.0, 1.0))
    assert_close(make_balancer("krum").direction(rows([3.0, -4.0])), rows(3.0, -4.0))
    assert_close(made(n_selected=9).direction(rows(*FOUR)), rows(*FOUR).mean(0))


def test_scale_and_arguments():
    assert_close(make_balancer("krum").direction(rows(*FOUR)), rows(4.0, 0.0))
    for name, value in (("n_byzantine", -1), ("n_selected", 0)):
        with pytest.raises(MethodError, match=f"krum: {name} must be at least"):
            make_balancer("krum", **{name: value})
