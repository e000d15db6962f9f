"""MGDA: goldens, the property of the shortest vector, normalisation, and TorchJD."""

from __future__ import annotations

import pytest
import torch
import torchjd.aggregation
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, ORTHOGONAL, context, gramian_of, rows
from tests.support.jacobians import KINDS, jacobian, unit

MODES = ("none", "l2", "loss", "loss+")


def mean(**arguments):
    return make_balancer("mgda", scale="mean", **arguments)


def test_goldens():
    assert_close(mean().weights(gramian_of(rows(*CONFLICT))), rows(0.6, 0.4))
    assert_close(mean().direction(rows(*CONFLICT)), rows(0.2, 0.4))
    assert_close(mean().weights(gramian_of(rows(*ORTHOGONAL))), rows(0.8, 0.2))
    assert_close(mean().direction(rows(*ORTHOGONAL)), rows(0.8, 0.4))
    assert_close(make_balancer("mgda").direction(rows(*CONFLICT)), rows(0.4, 0.8))
    assert_close(mean().weights(gramian_of(rows((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)))), rows(0.5, 0.5, 0.0))


@pytest.mark.parametrize("normalise", MODES)
@pytest.mark.parametrize("tasks", [2, 7, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_no_task_falls_short_of_the_squared_norm(kind, tasks, normalise):
    gradients, losses = jacobian(kind, tasks), torch.linspace(1, 3, tasks).double()
    found = mean(normalise=normalise).direction(gradients, losses)
    divided = unit(gradients) if normalise in ("l2", "loss+") else gradients
    if normalise in ("loss", "loss+"):
        divided = divided / losses[:, None]
    norms = divided.norm(dim=1)
    some = norms > 0
    slack = (divided @ found - found @ found)[some] / (norms[some] * norms[some].min())
    assert (slack >= -1e-10).all()
    assert found.norm() <= divided.mean(0).norm() * (1 + 1e-12)


def test_normalisation_by_hand():
    gramian, losses = gramian_of(rows(*ORTHOGONAL)), rows(1.0, 2.0)
    # Rows become (1, 0) and (0, 1): equal shares, then w_2 / 2. With "loss+" they become (1, 0) and (0, ½): shares ⅕
    # and ⅘, then w_2 / 4.
    for normalise, expected in (
        ("none", (0.8, 0.2)),
        ("l2", (0.5, 0.25)),
        ("loss", (0.5, 0.25)),
        ("loss+", (0.2, 0.2)),
    ):
        assert_close(mean(normalise=normalise).weights(gramian, losses), rows(*expected))
    assert_close(make_balancer("mgda", normalise="l2").weights(gramian), rows(1.0, 0.5))


def test_normalisation_takes_losses_as_they_come():
    gramian = gramian_of(rows(*ORTHOGONAL))
    assert_close(mean(normalise="loss").weights(gramian, rows(1.0, 0.0)), rows(0.8, 0.2))
    with pytest.raises(MethodError, match=r"MGDA: normalise='loss\+' divides by the losses.*-1.0"):
        mean(normalise="loss+").weights(gramian, rows(1.0, -1.0))
    assert_close(mean(normalise="l2").weights(gramian, rows(1.0, -1.0)), rows(0.5, 0.25))


def test_it_is_where_torchjd_goes():
    for seed in range(3):
        gradients = jacobian("plain", 4, seed, columns=6)
        theirs = torchjd.aggregation.MGDA(epsilon=1e-9, max_iters=2000)(gradients)
        ours = mean().direction(gradients)
        assert_close(ours, theirs, atol=1e-2, rtol=0)  # Frank-Wolfe is slow.
        assert ours.norm() <= theirs.norm()
    for seed in range(5):
        gradients = jacobian("plain", 2, seed)
        assert_close(mean().direction(gradients), torchjd.aggregation.MGDA()(gradients))


def test_zero_single_and_equal_gradients():
    for normalise in MODES:
        rule = mean(normalise=normalise)
        assert_close(rule.direction(torch.zeros(3, 2)), torch.zeros(2))
        assert_close(rule.direction(rows((1.0, 0.0), (0.0, 0.0), (-1.0, 1.0))), rows(0.0, 0.0))
        assert_close(rule.direction(rows((1.0, 2.0), (-1.0, -2.0))), rows(0.0, 0.0))
    assert_close(mean().direction(rows([3.0, -4.0])), rows(3.0, -4.0))
    assert_close(mean(normalise="l2").direction(rows([3.0, -4.0])), rows(0.6, -0.8))
    assert_close(make_balancer("mgda").direction(torch.tensor([[1.0, 2.0], [1.0, 2.0]])), torch.tensor([2.0, 4.0]))


def test_only_active_tasks_count():
    rule = mean(normalise="loss")
    rule.configure(3)
    ctx = context(rows(1.0, 2.0), active=(0, 2))
    assert_close(rule.gradient_weights(gramian_of(rows(*ORTHOGONAL)), ctx), rows(0.5, 0.25))


def test_tasks_may_change_places():
    gradients, order = jacobian("plain", 5), [3, 0, 4, 1, 2]
    gramian = gramian_of(gradients)
    turned = mean().weights(gramian[order][:, order])
    assert_close(turned, mean().weights(gramian)[order])


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(MethodError, match=r"MGDA: Unknown normalise 'l1'.*Known: l2, loss, loss\+, none"):
        make_balancer("mgda", normalise="l1")
