"""GO4Align: goldens, exact groups, invariants, absent tasks, state and arguments."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from mtlbench.methods.losses.go4align import group_means
from tests.support.balancers import context, rows

LOSSES = rows(1.0, 2.0, 4.0)


def made(tasks=3, **arguments):
    rule = make_balancer("go4align", **{"lr": 0.1, "scale": "raw", **arguments})
    rule.configure(tasks)
    return rule


def weights(rule, losses, **changes):
    return loss_weights(rule.combine_losses, context(losses, **changes))[0]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [(1, [1.4443] * 3), (2, [2.645847, 0.843527, 0.843527]), (3, [2.645847, 1.197031, 0.490023])],
)
def test_goldens(groups, expected):
    rule = made(groups=groups)
    assert_close(weights(rule, LOSSES), rows(*expected), atol=1e-6, rtol=0)
    rule.after_step(context(LOSSES))
    assert_close(rule.progress, rows(0.377978, 0.342009, 0.280013), atol=1e-6, rtol=0)
    summed = weights(made(groups=groups, scale="sum"), LOSSES)
    assert_close(summed, 3 * rows(*expected) / sum(expected), atol=1e-6, rtol=0)


def by_trying(values, groups):
    """The best cuts of the sorted values, all tried."""
    ordered, best = np.sort(values), (np.inf, None)
    for count in range(1, groups + 1):
        for cuts in combinations(range(1, len(values)), count - 1):
            parts = np.split(ordered, cuts)
            means = np.concatenate([np.full(len(part), part.mean()) for part in parts])
            best = min(best, (((ordered - means) ** 2).sum(), means.tolist()))
    return np.array(best[1])[np.argsort(np.argsort(values))]


@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_groups_are_the_best_of_all(groups):
    generator = np.random.default_rng(groups)
    for _ in range(20):
        values = generator.normal(size=5) ** 2
        np.testing.assert_allclose(group_means(values, groups), by_trying(values, groups), rtol=1e-9)


def test_a_unit_of_the_losses_does_not_matter():
    one, other = made(groups=2, lr=0.1), made(groups=2, lr=0.1 / 50)
    for step in range(3):
        losses = LOSSES * rows(0.9, 0.8, 0.95) ** step
        assert_close(weights(other, 50 * losses), weights(one, losses))
        one.after_step(context(losses)), other.after_step(context(50 * losses))


def test_large_losses_lose_progress_and_do_not_overflow():
    rule = made(lr=10.0, groups=2)
    losses = rows(1e4, 1.0, 2.0)
    rule.after_step(context(losses))
    assert weights(rule, losses).isfinite().all() and rule.progress[0] < rule.progress[2] < rule.progress[1]


def test_absent_tasks_keep_their_share():
    rule = made(groups=2)
    rule.after_step(context(rows(1.0, 4.0), active=(0, 2)))
    assert_close(rule.progress[1], torch.tensor(1 / 3).double())
    assert rule.progress[0] > rule.progress[2]
    assert_close(rule.progress.sum(), torch.tensor(1.0).double())
    assert_close(weights(made(2, groups=2), rows(1.0, 4.0)), weights(made(groups=2), rows(1.0, 4.0), active=(0, 2)))


def test_state_is_in_the_checkpoint():
    one, other = made(groups=2), made(groups=2)
    one.after_step(context(LOSSES))
    other.load_state_dict(one.state_dict())
    assert torch.equal(weights(one, LOSSES), weights(other, LOSSES))
    assert not torch.equal(weights(one, LOSSES), weights(made(groups=2), LOSSES))


def test_arguments_out_of_range():
    for name, value in (("groups", 0), ("lr", -1.0), ("lr", float("inf"))):
        with pytest.raises(MethodError, match=f"go4align: {name} must"):
            make_balancer("go4align", **{name: value})
