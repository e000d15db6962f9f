"""Columns with reductions of their concatenated maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlbench.errors import MethodError
from mtlbench.networks.nddr import NDDRUnit
from tests.support.architectures import (
    MODELS,
    TASKS,
    check_ownership,
    check_predictions,
    check_with_balancer,
    images,
    made,
    network,
)


@pytest.mark.parametrize("kind", MODELS)
def test_ownership_and_predictions(kind):
    net = network("nddr_cnn", kind)
    check_ownership(net)
    check_predictions(net)


def without_norm(*arguments, **options):
    unit = NDDRUnit(*arguments, **options)
    unit.norm = nn.Identity()
    return unit


def test_a_unit_by_hand():
    maps = [torch.full((2, 4, 2, 3), value) for value in (1.0, 3.0)]
    for i, value in enumerate((1.2, 2.8)):
        got = without_norm(4, 2, i, own=0.9, other=0.1)(maps)
        torch.testing.assert_close(got, torch.full((2, 4, 2, 3), value))
    assert not without_norm(4, 2, 0, own=0.9, other=-0.4)(maps).any()  # 0.9 - 1.2 < 0


def test_an_identity_without_norm_is_relu():
    maps = [torch.randn(2, 8, 3, 2) for _ in range(3)]
    for i, own in enumerate(maps):
        torch.testing.assert_close(without_norm(8, 3, i, own=1.0, other=0.0)(maps), own.relu())


def test_a_unit_normalises_groups_of_channels_of_each_image():
    maps = [torch.randn(2, 8, 6, 5, dtype=torch.float64) for _ in range(2)]
    unit = NDDRUnit(8, 2, 0, own=1.0, other=0.0).double()
    groups = maps[0].unflatten(1, (unit.norm.num_groups, -1))
    deviation = groups.var((2, 3, 4), keepdim=True, unbiased=False).add(1e-5).sqrt()
    wanted = ((groups - groups.mean((2, 3, 4), keepdim=True)) / deviation).flatten(1, 2).relu()
    torch.testing.assert_close(unit(maps), wanted)
    torch.testing.assert_close(unit([m[1:] for m in maps]), wanted[1:])


def test_a_unit_reads_every_channel_of_every_task():
    unit = NDDRUnit(4, 3, 1, own=0.8, other=0.05)
    assert unit.reduce.weight.shape == (4, 12, 1, 1)
    maps = [torch.randn(1, 4, 2, 2) for _ in range(3)]
    unit(maps).square().sum().backward()
    assert unit.reduce.weight.grad.abs().sum((0, 2, 3)).gt(0).all()


def test_identity_units_keep_columns_apart():
    net, image = network("nddr_cnn", own=1.0, other=0.0).eval(), images()
    before = net(image, list(TASKS)).predictions
    with torch.no_grad():
        net.encoders["depth"].trunk.model.blocks[0].mlp.fc2.weight.mul_(-3)
    after = net(image, list(TASKS)).predictions
    assert not torch.allclose(before["depth"], after["depth"])
    assert torch.equal(before["kind"], after["kind"]) and torch.equal(before["normals"], after["normals"])


def test_units_have_their_own_rate_and_no_decay():
    method = made("nddr_cnn", nddr_lr=10.0)
    group = method.configure_optimizers()["optimizer"].param_groups[-1]
    assert {id(p) for p in group["params"]} == {id(p) for p in method.network.units.parameters()}
    assert group["lr"] == pytest.approx(1e-2) and group["weight_decay"] == 0


@pytest.mark.parametrize("balancer", ["pcgrad", "uncertainty", "gradnorm"])
def test_any_balancer(balancer, tmp_path):
    check_with_balancer("nddr_cnn", balancer, tmp_path)


def test_a_rate_outside_its_range_is_refused():
    for wrong in (0.0, float("nan"), float("inf")):
        with pytest.raises(MethodError, match="nddr_lr must be positive"):
            made("nddr_cnn", nddr_lr=wrong)
