"""Auto-λ: golden, agreement with the derivative, what leaves no trace, weights, resuming, and arguments."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from mtlbench.methods.losses.auto_lambda import hypergradient
from mtlbench.testing import difference, toy_spec, trained
from tests.support.architectures import made
from tests.support.balancers import context, rows
from tests.support.bowls import Bowls


def parts(x, inner, outer=None):
    parameter = nn.Parameter(torch.tensor(x, dtype=torch.float64))
    return Bowls(parameter, inner), Bowls(parameter, inner if outer is None else outer)


def test_golden():
    inner, outer = parts(0.5, rows(1.0, -1.0))
    found = hypergradient(inner, outer, [0.1], rows(0.1, 0.1), torch.ones(1, 2))
    assert_close(found, rows(0.049, -0.147), atol=1e-9, rtol=0)
    assert inner.parameters[0].item() == 0.5, "the parameter is where it was, bit for bit"


def test_it_is_the_derivative_of_the_primary_losses_after_the_step():
    weights, primary = rows(0.3, 0.5, 0.2), torch.tensor([[1.0, 0.0, 1.0]])
    inner, outer = parts(0.7, rows(1.0, -2.0, 0.5), rows(0.8, -1.5, 3.0))
    free = weights.clone().requires_grad_()
    slopes = inner.parameters[0].detach() - inner.targets
    after = (inner.parameters[0].detach() - 0.2 * (free * slopes).sum() - outer.targets).square() / 2
    (wanted,) = torch.autograd.grad((after * primary[0]).sum(), free)
    found = hypergradient(inner, outer, [0.2], weights, primary)
    assert_close(found, wanted, atol=1e-9, rtol=0)


def test_no_gradient_on_other_samples_leaves_the_weights():
    inner, outer = parts(0.0, rows(1.0, -1.0))
    assert_close(hypergradient(inner, outer, [0.1], rows(0.1, 0.1), torch.ones(1, 2)), rows(0.0, 0.0))


def test_the_weights_of_a_step():
    for scale, factor in (("raw", 1.0), ("sum", 10.0)):
        method = made("auto_lambda", scale=scale)
        method.weights.values.copy_(rows(0.1, 0.2, -0.1))
        found, _ = loss_weights(method.combine_losses, context(rows(1.0, 1.0), active=(0, 2)))
        assert_close(found, factor * rows(0.1, -0.1))


def test_without_a_rate_it_is_the_plain_sum_and_with_one_weights_move(tmp_path):
    """The first level leaves no trace in weights, buffers and draws."""
    plain = trained(toy_spec("uniform", steps=6), str(tmp_path / "plain"))
    still = trained(toy_spec("auto_lambda", steps=6, arguments={"lr": 1e-300}), str(tmp_path / "still"))
    network = {name: value for name, value in still.items() if name.startswith("network.")}
    assert difference(network, {name: plain[name] for name in network}) < 1e-12
    spec = toy_spec("auto_lambda", steps=6, arguments={"lr": 0.01})
    moved = trained(spec, str(tmp_path / "moved"))
    assert (moved["weights.values"] - 0.1).abs().min() > 1e-3
    summary = json.loads((tmp_path / "moved" / spec.run_id / "summary.json").read_text())
    assert list(summary["weights"].values()) == pytest.approx(moved["weights.values"].tolist())


def test_two_ranks_halve_the_batch_as_one_process_does(pool, tmp_path):
    spec = toy_spec("auto_lambda", steps=8, arguments={"lr": 0.01}, batch_size=12)
    one = trained(spec, str(tmp_path / "one"))
    two = pool.call(trained, spec, str(tmp_path / "two"), world=2)[0]
    assert difference(one, two) < 1e-9


def test_arguments_out_of_range():
    for arguments in ({"lr": 0.0}, {"initial": -0.1}, {"primary": ["dept"]}, {"scale": "mean"}):
        with pytest.raises(MethodError, match="auto_lambda: "):
            made("auto_lambda", **arguments)
    assert made("auto_lambda", primary=["depth"]).primary.tolist() == [[1.0, 0.0, 0.0]]
