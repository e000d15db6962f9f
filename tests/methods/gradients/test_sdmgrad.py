"""SDMGrad: goldens, TorchJD's rule step by step, the problem that it solves, state and absent tasks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torchjd.aggregation
from scipy.optimize import minimize
from torch.testing import assert_close

from mtlbench.balancing import make_balancer
from mtlbench.errors import MethodError
from tests.support.balancers import CONFLICT, ORTHOGONAL, context, gramian_of, rows
from tests.support.jacobians import KINDS, jacobian


def made(tasks, **arguments):
    rule = make_balancer("sdmgrad", **{"scale": "mean", **arguments})
    rule.configure(tasks)
    return rule.double()


def cross(kind, tasks, seed):
    """G₁ G₂ᵀ of two mini-batches whose gradients have something in common: not symmetric."""
    common, one, two = (jacobian(kind, tasks, seed + offset) for offset in (0, 100, 200))
    return (common + 0.3 * one) @ (common + 0.3 * two).T


def test_one_step_by_hand():
    # ((1 + √2) / 2)² = 1.457107; M w = (0, 0.5 / 1.457107); a tenth of it is 0.034315; half of that goes to the other.
    rule = made(2, lambda_=0.0, lr=0.1, steps=1)
    assert_close(rule.weights(gramian_of(rows(*CONFLICT))), rows(0.517157, 0.482843), rtol=0, atol=1e-6)
    # With λ = 1 the step is twice as long, and the mean has half of the weight.
    rule = made(2, lambda_=1.0, lr=0.1, steps=1)
    assert_close(rule.weights(gramian_of(rows(*CONFLICT))), rows(0.517157, 0.482843), rtol=0, atol=1e-6)
    assert_close(rule.task_weights, rows(0.534315, 0.465685), rtol=0, atol=1e-6)


def test_momentum_by_hand():
    # ((1 + 2) / 2)² = 2.25; M w = (0.5, 2) / 2.25, so w = (0.533333, 0.466667) after one step of 0.1; then
    # v = (0.348148, 1.274074) and w = (0.533333, 0.466667) ± 0.046296.
    rule = made(2, lambda_=0.0, lr=0.1, steps=2)
    assert_close(rule.weights(gramian_of(rows(*ORTHOGONAL))), rows(0.579630, 0.420370), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tasks", [2, 5, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_torchjd_step_by_step(kind, tasks):
    rule, theirs = made(tasks, lr=0.5), torchjd.aggregation.SDMGradWeighting(lr=0.5)
    for seed in range(4):
        matrix = cross(kind, tasks, seed)
        weights = rule.weights(matrix)
        assert_close(weights, theirs(matrix), rtol=0, atol=1e-7)
        assert (weights >= 0).all() and weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_torchjd_at_the_official_rate(kind):
    # At this rate steps jump across the simplex and multiply rounding about tenfold each: only few are compared.
    for tasks, matrix in ((tasks, cross(kind, tasks, 0)) for tasks in (2, 5, 40)):
        theirs = torchjd.aggregation.SDMGradWeighting(lr=10.0, n_iter=4)
        assert_close(made(tasks, lr=10.0, steps=4).weights(matrix), theirs(matrix), rtol=0, atol=1e-8)


def test_the_defaults_are_those_of_torchjd_and_the_official_code():
    rule, theirs = make_balancer("sdmgrad"), torchjd.aggregation.SDMGradWeighting()
    ours = (rule.lambda_, rule.lr, rule.momentum, rule.steps)
    assert ours == (theirs.lambda_, theirs.lr, theirs.momentum, theirs.n_iter) == (0.3, 10.0, 0.5, 20)


@pytest.mark.parametrize("tasks", [2, 5])
def test_many_short_steps_solve_the_problem_of_the_paper(tasks):
    gradients = jacobian("plain", tasks, columns=8)
    gramian, mean = (gradients @ gradients.T).numpy(), np.full(tasks, 1 / tasks)

    def objective(w):
        return (w + 0.3 * mean) @ gramian @ (w + 0.3 * mean)

    options = {"bounds": [(0, 1)] * tasks, "constraints": {"type": "eq", "fun": lambda w: w.sum() - 1}, "tol": 1e-14}
    best = minimize(objective, mean, method="SLSQP", **options).x
    rule = made(tasks, lr=0.05, steps=5000)
    rule.weights(torch.from_numpy(gramian))
    assert_close(rule.task_weights, torch.from_numpy(best), rtol=0, atol=1e-4)


def test_a_large_lambda_gives_the_mean():
    matrix = cross("plain", 4, 0)
    assert_close(made(4, lambda_=1e9).weights(matrix), torch.full((4,), 0.25).double(), rtol=0, atol=1e-8)
    assert (made(4, lambda_=0.0).weights(matrix) - 0.25).abs().max() > 0.05


def test_weights_of_two_batches_act_on_the_third():
    batches = jacobian("plain", 3) + 0.3 * torch.stack([jacobian("plain", 3, seed) for seed in (1, 2, 3)])

    def weights(one, two):
        return made(3, lr=0.1, steps=1).weights(batches[one] @ batches[two].T)

    assert made(3).batches == 3
    assert_close(made(3, lr=0.1, steps=1).direction(batches), weights(0, 1) @ batches[2])
    assert not torch.allclose(weights(0, 1), weights(1, 0), rtol=0, atol=1e-4)


def test_the_length_of_gradients_does_not_matter():
    matrix = cross("plain", 4, 0)
    assert_close(made(4, lr=0.5).weights(1e6 * matrix), made(4, lr=0.5).weights(matrix), rtol=0, atol=1e-6)


def test_batches_that_contradict_each_other_stay_finite():
    weights = made(2).weights(-torch.eye(2).double())
    assert (weights >= 0).all() and weights.sum().item() == pytest.approx(1)


def test_scales_one_task_and_no_gradient():
    matrix = cross("plain", 4, 0)
    assert_close(made(4, scale="sum").weights(matrix), 4 * made(4).weights(matrix))
    assert_close(made(1).direction(rows([3.0, -4.0])), rows(3.0, -4.0))
    assert_close(made(3).direction(torch.zeros(3, 2).double()), rows(0.0, 0.0))


def test_tasks_may_change_places():
    rule, other, order = made(4, lr=0.5), made(4, lr=0.5), [2, 0, 3, 1]
    for seed in range(3):
        matrix = cross("plain", 4, seed)
        assert_close(other.weights(matrix[order][:, order]), rule.weights(matrix)[order])


def test_absent_tasks_rest():
    rule = made(3, lambda_=0.0, lr=0.1, steps=1)
    rule.task_weights.copy_(rows(0.3, 0.4, 0.3))
    weights = rule.gradient_weights(gramian_of(rows(*CONFLICT)), context(torch.ones(2), active=(0, 2)))
    # The two present tasks move as by hand above, and divide 0.6 of the whole.
    assert_close(weights, rows(0.517157, 0.482843), rtol=0, atol=1e-6)
    assert_close(rule.task_weights, rows(0.310294, 0.4, 0.289706), rtol=0, atol=1e-6)


def test_a_resumed_rule_continues_bit_for_bit():
    rule, other, fresh = made(4, lr=0.1, steps=3), made(4, lr=0.1, steps=3), made(4, lr=0.1, steps=3)
    rule.weights(cross("plain", 4, 0))
    other.load_state_dict(copy.deepcopy(rule.state_dict()))
    for seed in (1, 2):
        matrix = cross("plain", 4, seed)
        found = rule.weights(matrix)
        assert torch.equal(found, other.weights(matrix))
        assert not torch.allclose(found, fresh.weights(matrix)), "weights are kept from step to step"
    assert not list(rule.parameters())


BAD = [("lambda_", -0.1), ("lambda_", float("nan")), ("lr", 0.0), ("lr", float("inf")), ("momentum", 1.0), ("steps", 0)]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_arguments_out_of_range(name, value):
    with pytest.raises(MethodError, match=rf"sdmgrad: {name} must .* Found"):
        make_balancer("sdmgrad", **{name: value})
