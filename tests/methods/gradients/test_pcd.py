"""PCD: goldens, its guarantees, agreement with TorchJD over steps, absent tasks, and state."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torchjd.aggregation import PCDWeighting

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, ORTHOGONAL, context, gramian_of, rows
from tests.support.jacobians import KINDS, jacobian


def made(tasks=3, **arguments):
    rule = make_balancer("pcd", scale="mean", **arguments)
    rule.configure(tasks)
    return rule


@pytest.mark.parametrize(
    ("tau", "gradients", "direction"),
    [(0.02, CONFLICT, (0.6868, 0.7268)), (0.5, CONFLICT, (0.1691, 0.9856)), (0.5, ORTHOGONAL, (0.8944, 0.4472))],
)
def test_goldens(tau, gradients, direction):
    assert_close(made(2, tau=tau).direction(rows(*gradients)), rows(*direction), atol=5e-5, rtol=0)
    weights = made(2).weights(gramian_of(rows(*CONFLICT)))
    assert_close(weights, rows(1.4136, 0.7268), atol=5e-5, rtol=0)


@pytest.mark.parametrize("primary", [0, 2])
@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_every_other_task_gets_its_share_and_the_length_is_that_of_the_primary_gradient(primary, tau):
    for seed in range(10):
        gradients = jacobian("plain", 4, seed)
        found = made(4, primary=primary, tau=tau).direction(gradients)
        assert_close(found.norm(), gradients[primary].norm())
        unit = gradients / gradients.norm(dim=1, keepdim=True)
        others = [i for i in range(4) if i != primary]
        # In the first step n_i has length 1, and d is scaled to the length of g_p after the constraints were met.
        along = unit[others] @ found / found.norm()
        assert (along > -1e-9).all() if tau == 0 else (along > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_torchjd_step_by_step_whichever_task_is_first(kind):
    rule, theirs = made(3, primary=1, beta=0.5, tau=0.3), PCDWeighting(beta=0.5, tau=0.3)
    for step in range(4):
        gramian = gramian_of(jacobian(kind, 3, step))
        wanted = theirs(gramian[[1, 0, 2]][:, [1, 0, 2]])[[1, 0, 2]]
        assert_close(rule.weights(gramian), wanted, rtol=1e-9, atol=1e-12)


def test_contradicting_constraints_and_a_zero_primary_gradient():
    assert_close(made(tau=0.5).direction(rows((1.0, 0.0), (0.0, 1.0), (0.0, -1.0))), rows(1.0, 0.0))
    assert_close(made().direction(rows((0.0, 0.0), (0.0, 1.0), (1.0, 0.0))), rows(0.0, 0.0))
    assert_close(made().direction(torch.zeros(3, 2).double()), rows(0.0, 0.0))


def test_a_new_instance_goes_on_where_the_old_one_stopped():
    rule, other = made(beta=0.5, tau=0.4), made(beta=0.5, tau=0.4)
    for step in range(3):
        rule.weights(gramian_of(jacobian("plain", 3, step)))
    other.load_state_dict(rule.state_dict())
    fresh = made(beta=0.5, tau=0.4)
    last = gramian_of(jacobian("plain", 3, 9) * rows([1.0], [10.0], [1.0]))
    wanted = rule.weights(last)
    assert torch.equal(other.weights(last), wanted)
    assert (fresh.weights(last) - wanted).abs().max() > 1e-3, "the state counts"
    empty = made()
    empty.load_state_dict(made().state_dict())  # before the first step there is none
    assert_close(empty.weights(last), made().weights(last))


def test_absent_tasks():
    gramian = gramian_of(rows(*CONFLICT))
    rule, ctx = made(3), context(torch.ones(2).double(), active=(0, 2))
    assert_close(rule.gradient_weights(gramian, ctx), made(2).weights(gramian))
    without = made(3).gradient_weights(gramian, context(torch.ones(2).double(), active=(1, 2)))
    assert_close(without, rows(0.5, 0.5))


def test_arguments_out_of_range():
    wrong = [("primary", -1), ("tau", 1.5), ("tau", -0.1), ("beta", 1.0), ("eps", -1.0), ("eps", float("nan"))]
    for name, value in wrong:
        with pytest.raises(MethodError, match=f"pcd: {name} "):
            make_balancer("pcd", **{name: value})
    with pytest.raises(MethodError, match="below the number of tasks, 2. Found 2"):
        make_balancer("pcd", primary=2).configure(2)
