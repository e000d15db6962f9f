"""Permutation equivariance: the direction of a rule on the Gramian must not depend on the order of the tasks.

Every shipped rule is checked in all orders of four tasks. Rules with a random order are listed as exceptions.
"""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from mtlbench import registry
from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import Balancer
from tests.support.jacobians import jacobian

ORDER_MATTERS = {
    "pcgrad": "It visits the other tasks in a random order drawn by position.",
    "gradvac": "It visits the other tasks in a random order drawn by position.",
    "pcd": "Its primary task is named by position.",
}
"""Rules that are not equivariant by definition."""

TASKS = 4
ORDERS = list(permutations(range(TASKS)))


def rules():
    """Returns the names of the shipped rules on the Gramian, including those on a cross-Gramian."""
    found = {name: registry.find(name) for name in registry.shipped()}
    return sorted(
        name
        for name, rule in found.items()
        if issubclass(rule, Balancer) and rule.gradient_weights is not Balancer.gradient_weights
    )


def nearly_singular(gap, seed):
    """Returns gradients whose sum is ``gap`` times a random vector."""
    found = jacobian("plain", TASKS, seed, columns=6)
    found[-1] = -(found[:-1].sum(0)) + gap * found[-1]
    return found


TOLERANCE = {"random": 1e-9, "nearly singular, 1e-3": 1e-6, "nearly singular, 1e-5": 1e-4}
"""Allowed relative change of the direction. A Gramian squares the condition number, so rounding grows with it."""

CASES = {
    "random": lambda seed: jacobian("plain", TASKS, seed, columns=6),
    "nearly singular, 1e-3": lambda seed: nearly_singular(1e-3, seed),
    "nearly singular, 1e-5": lambda seed: nearly_singular(1e-5, seed),
}


def largest_change(name, gradients, losses):
    """Returns the largest relative change of the direction over all orders of the tasks."""
    found = []
    for order in map(list, ORDERS):
        rows = gradients[order]
        weights = make_balancer(name).weights(rows @ rows.T, losses[order])
        found.append(weights @ rows)
    scale = max(float(found[0].norm()), 1e-9 * float(gradients.norm()))
    return max(float((direction - found[0]).norm()) for direction in found) / scale


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", sorted(set(rules()) - set(ORDER_MATTERS)))
def test_directions_do_not_depend_on_the_order_of_the_tasks(name, case):
    for seed in range(3):
        losses = torch.rand(TASKS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5
        assert largest_change(name, CASES[case](seed), losses) <= TOLERANCE[case]


@pytest.mark.parametrize("name", sorted(ORDER_MATTERS))
def test_the_exceptions_do_depend_on_it(name):
    """A rule that has become equivariant should leave the list of exceptions."""
    changes = [largest_change(name, CASES["random"](seed), torch.ones(TASKS).double()) for seed in range(5)]
    assert max(changes) > 1e-4
