"""MOML: golden, agreement with the derivative, the common gradient, weights, and runs."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from mtlbench.methods.losses.moml import common_gradient, hypergradients
from mtlbench.testing import difference, toy_spec, trained
from tests.support.architectures import made
from tests.support.balancers import CONFLICT, context, gramian_of, rows
from tests.support.jacobians import jacobian


def test_golden():
    found = hypergradients(gramian_of(rows(*CONFLICT)), rows(0.5, 0.5), 0.1)
    assert_close(found, rows((-0.05, 0.05), (0.075, -0.075)))
    assert_close(common_gradient(found), rows(0.0, 0.0))


def test_rows_are_derivatives_of_the_losses_after_the_step_and_sum_to_zero():
    inner, outer, start = jacobian("plain", 3, 1, 5), jacobian("plain", 3, 2, 5), rows(0.2, -0.4, 0.7)

    def losses(logits):
        """Linear losses with other gradients on the second half."""
        return outer @ (-0.3 * torch.softmax(logits, 0) @ inner)

    wanted = torch.autograd.functional.jacobian(losses, start)
    found = hypergradients(outer @ inner.T, torch.softmax(start, 0), 0.3)
    assert_close(found, wanted)
    assert_close(found.sum(1), torch.zeros(3).double())


def test_the_common_gradient_is_one_of_every_task():
    gradients = rows((1.0, 0.0), (0.0, 100.0))
    assert_close(common_gradient(gradients), rows(0.5, 0.5))
    assert_close(common_gradient(rows((3.0, 4.0), (0.0, 0.0))), rows(0.0, 0.0))


def test_the_weights_of_a_step():
    for scale, total in (("sum", 2.0), ("mean", 1.0)):
        method = made("moml", scale=scale)
        method.logits.values.copy_(rows(0.0, 5.0, torch.tensor(3.0).log()))
        found, _ = loss_weights(method.combine_losses, context(rows(1.0, 1.0), active=(0, 2)))
        assert_close(found, total * rows(0.25, 0.75))


def test_without_a_rate_it_is_the_plain_sum_and_with_one_weights_move(tmp_path):
    plain = trained(toy_spec("uniform", steps=5), str(tmp_path / "plain"))
    still = trained(toy_spec("moml", steps=5, arguments={"lr": 1e-300}), str(tmp_path / "still"))
    network = {name: value for name, value in still.items() if name.startswith("network.")}
    assert difference(network, {name: plain[name] for name in network}) < 1e-12
    moved = trained(toy_spec("moml", steps=5, arguments={"lr": 0.1}), str(tmp_path / "moved"))
    assert moved["logits.values"].abs().max() > 0.05


def test_arguments_out_of_range():
    for arguments in ({"lr": 0.0}, {"inner_lr": float("inf")}, {"scale": "raw"}):
        with pytest.raises(MethodError, match="moml: "):
            made("moml", **arguments)
