"""Columns with channel-wise combinations after each stage."""

from __future__ import annotations

import pytest
import torch

from mtlbench.errors import MethodError, SuiteError
from mtlbench.method import MethodSpec
from mtlbench.methods.architectures.cross_stitch import CrossStitch
from mtlbench.networks.cross_stitch import StitchUnit
from tests.support.architectures import (
    MODELS,
    TASKS,
    check_ownership,
    check_predictions,
    check_with_balancer,
    dense,
    images,
    made,
    network,
)


@pytest.mark.parametrize("kind", MODELS)
def test_ownership_and_predictions(kind):
    net = network("cross_stitch", kind)
    check_ownership(net)
    check_predictions(net)


def test_a_stitch_by_hand():
    maps = [torch.full((2, 3, 2, 4), value) for value in (1.0, 3.0)]
    found = [StitchUnit(3, 2, i, own=0.9, other=0.1)(maps) for i in (0, 1)]
    for got, value in zip(found, (1.2, 2.8), strict=True):
        torch.testing.assert_close(got, torch.full((2, 3, 2, 4), value))


def test_a_stitch_has_one_number_per_channel():
    unit = StitchUnit(2, 2, 0, own=1.0, other=0.0)
    with torch.no_grad():
        unit.weight[1, 1] = 2.0
    mixed = unit([torch.ones(1, 2, 1, 3), torch.full((1, 2, 1, 3), 5.0)])
    assert mixed[0, :, 0, 0].tolist() == [1.0, 11.0]


@pytest.mark.parametrize("kind", MODELS)
def test_identity_stitches_are_single_task_networks(kind):
    net, image = network("cross_stitch", kind, own=1.0, other=0.0), images()
    together = net(image, list(TASKS)).predictions
    for task in TASKS:
        single = dense(kind, {task: TASKS[task]})
        alone = single(image, [task]).predictions[task]
        torch.testing.assert_close(together[task], alone)
        column = [*net.encoders[task].parameters(), *net.necks[task].parameters(), *net.heads[task].parameters()]
        found = torch.autograd.grad(
            together[task].square().sum(), [p for p in column if p.requires_grad], retain_graph=True
        )
        wanted = torch.autograd.grad(alone.square().sum(), [p for p in single.parameters() if p.requires_grad])
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_columns_are_apart_after_the_start():
    net = network("cross_stitch")
    memory = [p.data_ptr() for part in (*net.encoders.values(), *net.necks.values()) for p in part.parameters()]
    assert len(memory) == len(set(memory))
    assert len(net.units) == 4 and net.units[0]["kind"].weight.shape == (3, 32)


def test_the_last_shared_layer_is_the_last_block_of_every_column():
    net = network("cross_stitch")
    blocks = [encoder.trunk.model.blocks[-1] for encoder in net.encoders.values()]
    assert [id(p) for p in net.last_shared_parameters()] == [id(p) for block in blocks for p in block.parameters()]


def test_units_of_the_last_stage_run_for_the_tasks_that_are_asked_for():
    net, calls = network("cross_stitch"), []
    for stage, units in enumerate(net.units):
        for task, unit in units.items():
            unit.register_forward_hook(lambda *_, at=(stage, task): calls.append(at))
    net(images(), ["kind"])
    assert calls == [*((stage, task) for stage in range(3) for task in TASKS), (3, "kind")]


def test_a_column_feels_what_another_task_learns():
    net, image = network("cross_stitch").eval(), images()
    before = net(image, ["kind"]).predictions["kind"]
    with torch.no_grad():
        net.encoders["depth"].trunk.model.blocks[-1].mlp.fc2.weight.mul_(-3)
    assert not torch.allclose(before, net(image, ["kind"]).predictions["kind"])


def test_stitches_have_their_own_rate_and_no_decay():
    method = made("cross_stitch", stitch_lr=100.0)
    optimiser = method.configure_optimizers()["optimizer"]
    own = {id(p) for p in method.network.units.parameters()}
    groups = {id(p): group for group in optimiser.param_groups for p in group["params"]}
    trainable = [p for p in method.parameters() if p.requires_grad]
    assert len(groups) == len(trainable) == sum(len(group["params"]) for group in optimiser.param_groups)
    for p in trainable:
        mine = id(p) in own
        assert groups[id(p)]["lr"] == pytest.approx(0.1 if mine else 1e-3)
        assert groups[id(p)]["weight_decay"] == (0.0 if mine or p.ndim < 2 else 1e-4)


@pytest.mark.parametrize("balancer", ["pcgrad", "uncertainty", "gradnorm"])
def test_any_balancer(balancer, tmp_path):
    check_with_balancer("cross_stitch", balancer, tmp_path)


def test_what_cannot_be_is_refused():
    options = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    spec = MethodSpec(TASKS, {"encoder": "eva02_tiny_patch14_224", "image_size": [16, 24], "encoder_options": options})
    with pytest.raises(SuiteError, match=r"stage by stage.*Eva.*vit_\*"):
        CrossStitch(spec).configure_model()
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(MethodError, match="stitch_lr must be positive"):
            made("cross_stitch", stitch_lr=wrong)
