"""LDC-MTL: golden, normalisations, the router's features and gradient, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from mtlbench.balancing.base import loss_weights
from mtlbench.errors import MethodError
from mtlbench.methods.losses.ldc_mtl import combined
from mtlbench.testing import difference, toy_spec, trained
from tests.support.architectures import TASKS, made
from tests.support.balancers import context, rows


def stepping(method, features, micro_index=0):
    """Gives a method the representation (B, C, h, w) of a micro-batch."""
    method._state.representation, method._state.micro_index = [features], micro_index
    return method


def preferring(method, *weights):
    """Makes the router answer with these weights, whatever the features are."""
    torch.nn.init.zeros_(method.router.weight)
    method.router.bias.data = rows(*weights).log().to(method.router.bias)
    return stepping(method, torch.randn(2, 12, 3, 3, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("scale", "factor"), [("raw", 1), ("sum", 2)])
def test_golden(scale, factor):
    two = {name: TASKS[name] for name in ("depth", "normals")}
    method = preferring(made("ldc_mtl", tasks=two, penalty=0.1, scale=scale), 0.6, 0.4)
    weights, value = loss_weights(method.combine_losses, context(rows(1.0, 2.0)))
    assert_close(value.detach(), factor * torch.tensor(1.42).double(), atol=1e-6, rtol=0)
    assert_close(weights, factor * rows(0.54, 0.44), atol=1e-6, rtol=0)


def test_the_penalty_is_that_of_neighbours():
    weights = rows(0.25, 0.25, 0.5)
    found = combined(rows(4.0, 8.0, 2.0), weights, 1.0)
    assert_close(found, torch.tensor(4.0 + 1.0 + 1.0).double())
    swapped = combined(rows(8.0, 4.0, 2.0), weights, 1.0)
    assert_close(swapped, torch.tensor(4.0 + 1.0 + 0.0).double())
    assert_close(combined(rows(3.0), rows(1.0), 1.0), torch.tensor(3.0).double())


def test_losses_are_normalised_by_those_of_the_first_batch():
    first, later = rows(2.0, 4.0, 8.0), rows(1.0, 1.0, 1.0)
    for normalise, wanted in (("none", later), ("initial", rows(1.0, 0.5, 0.25)), ("log", -first.log())):
        method = preferring(made("ldc_mtl", normalise=normalise), 1 / 3, 1 / 3, 1 / 3)
        method.spec.__dict__["steps_per_epoch"] = 10  # The specification is frozen.
        method._normalised(first, context(first))
        assert_close(method._normalised(later, context(later, step=3)), wanted)
    method._normalised(rows(4.0, 4.0, 4.0), context(first, step=10))
    assert_close(method._normalised(later, context(later, step=11)), -rows(4.0, 4.0, 4.0).log())
    stepping(method, torch.zeros(1, 12, 1, 1), micro_index=1)
    method._normalised(later, context(later, step=20))
    assert_close(method.initial, torch.full((3,), 4.0)), "the second micro-batch of an epoch starts nothing"


def test_an_absent_task_takes_no_part():
    method = preferring(made("ldc_mtl", penalty=0.1, scale="raw"), 0.3, 0.5, 0.2)
    weights, value = loss_weights(method.combine_losses, context(rows(1.0, 2.0), active=(0, 2)))
    assert_close(value.detach(), torch.tensor(1.42).double(), atol=1e-6, rtol=0)


def test_features_are_the_mean_over_pixels_and_images_with_its_gradient():
    method = made("ldc_mtl")
    z = torch.randn(4, 12, 3, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    stepping(method, z)
    found = method._features()
    assert_close(found, z.mean((0, 2, 3)))
    found.sum().backward()
    assert_close(z.grad, torch.full_like(z, 1 / 60))


def test_router_and_network_learn_from_the_weights(tmp_path):
    one, other = (
        trained(toy_spec("ldc_mtl", steps=3, arguments={"penalty": penalty}), str(tmp_path / str(penalty)))
        for penalty in (0.05, 5.0)
    )
    assert one["router.weight"].abs().sum() > 0 and difference(one, other) > 1e-3


def test_what_it_refuses():
    for name, value in (("penalty", -1.0), ("penalty", float("nan")), ("normalise", "none "), ("scale", "mean")):
        with pytest.raises(MethodError, match="ldc_mtl: "):
            made("ldc_mtl", **{name: value})
    method = made("ldc_mtl")
    method._state = SimpleNamespace(representation=[])
    with pytest.raises(MethodError, match="names none"):
        method.combine_losses(rows(1.0, 1.0, 1.0), context(rows(1.0, 1.0, 1.0)))
