"""What networks with an exchange of features share, and the loss of auxiliary predictions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.method.forward import loss_sums
from mtlbench.methods.architectures.mti_net import MTINet
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.blocks import Predictor, Pyramid, SqueezeExcite, basic_block, bottleneck, norm, per_task, resize
from mtlbench.networks.encoder import build_encoder
from mtlbench.networks.feature_exchange import FeatureExchange
from tests.support import network_checks as arch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pointwise(module, gate, value):
    """Makes 3 x 3 convolutions of one channel multiply by a number."""
    for table, number in ((module.gates, gate), (module.values, value)):
        for p in table.parameters():
            p.data.zero_()
            p.data[..., 1, 1] = number


def test_exchange_by_hand():
    module = FeatureExchange("x", "abc", 1)
    given = {name: torch.full((1, 1, 2, 3), number) for name, number in zip("abc", (1.0, 2.0, -1.0), strict=True)}
    pointwise(module, gate=math.log(3), value=10.0)
    # σ(2 ln 3) = 9/10, σ(-ln 3) = 1/4: 1 + 0.9 · 20 + 0.25 · (-10) = 16.5
    torch.testing.assert_close(module(given, "a"), torch.full((1, 1, 2, 3), 16.5))
    pointwise(module, gate=0.0, value=10.0)  # a gate of zeros lets one half through
    torch.testing.assert_close(module(given, "a"), torch.full((1, 1, 2, 3), 1 + 10.0 - 5.0))


def test_exchange_without_values_or_partners_is_the_identity():
    module = FeatureExchange("x", "ab", 4)
    given = {name: torch.randn(2, 4, 3, 5) for name in "ab"}
    assert not torch.equal(module(given, "a"), given["a"])
    for p in module.values.parameters():
        p.data.zero_()
    assert torch.equal(module(given, "a"), given["a"])
    alone = FeatureExchange("x", "a", 4)
    assert torch.equal(alone(given, "a"), given["a"]) and not list(alone.parameters())


def test_each_ordered_pair_has_its_own_convolutions():
    module = FeatureExchange("x", "abc", 2)
    assert len(list(module.parameters())) == 2 * 6
    values = [p.detach() for p in module.parameters()]
    assert len({float(p.sum()) for p in values}) == len(values)  # and starts with its own values
    assert {id(p) for m in module.owned("b") for p in m.parameters()} == {
        id(p) for name, p in module.named_parameters() if name.split(".")[1] == "b"
    }


def test_blocks_keep_the_size_and_survive_one_pixel():
    for build in (basic_block, bottleneck):
        for inputs, outputs in ((6, 6), (6, 10)):
            assert build(inputs, outputs)(torch.randn(1, inputs, 1, 1)).shape == (1, outputs, 1, 1)
    same = basic_block(8, 8)
    for p in same.body[-1].parameters():
        p.data.zero_()
    x = torch.randn(2, 8, 3, 5)
    assert torch.equal(same(x), x.relu())
    assert [norm(c).num_groups for c in (1, 8, 32, 64, 20)] == [1, 2, 8, 8, 1]


def test_squeeze_and_excitation_by_hand():
    gate = SqueezeExcite(2)
    for p in gate.parameters():
        p.data.zero_()
    gate.gate[2].bias.data = torch.tensor([0.0, math.log(3)])
    x = torch.randn(2, 2, 3, 5)
    torch.testing.assert_close(gate(x), x * torch.tensor([0.5, 0.75])[:, None, None])


def test_modules_of_a_task_do_not_depend_on_other_tasks():
    build = lambda _: nn.Linear(3, 3)  # noqa: E731
    one, more = per_task("x", "a", build), per_task("x", "ba", build)
    assert torch.equal(one["a"].weight, more["a"].weight)
    assert not torch.equal(more["a"].weight, more["b"].weight)
    assert not torch.equal(one["a"].weight, per_task("y", "a", build)["a"].weight)


def test_predictor_upsamples_in_full_precision():
    predict = Predictor(4, 3, (6, 10))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert predict(torch.randn(2, 4, 3, 5)).dtype == torch.float32
    x = torch.randn(2, 4, 6, 10)
    assert torch.equal(predict(x), nn.functional.conv2d(x, predict.weight, predict.bias))
    assert resize(x, (6, 10)) is x


@pytest.mark.parametrize(("patch", "size"), [(8, (32, 48)), (16, (32, 48)), (8, (16, 24))])
def test_pyramid_of_a_transformer(patch, size):
    options = {"patch_size": patch, "embed_dim": 32, "depth": 4, "num_heads": 2}
    encoder = build_encoder("vit_tiny_patch16_224", image_size=size, options=options)
    pyramid = Pyramid(encoder, 6, size)
    maps = pyramid(encoder(torch.zeros(1, 3, *size)))
    wanted = [(math.ceil(size[0] / s), math.ceil(size[1] / s)) for s in (4, 8, 16, 32)]
    assert [tuple(m.shape[1:]) for m in maps] == [(6, *s) for s in wanted]


def test_seldom_encoders():
    for name in ("hrnet_w18_small", "test_vit"):
        net = arch.network(MTINet, {"encoder": name, "image_size": [64, 96], "decoder_channels": 8})
        outputs = net(arch.images(1, (64, 96)) if name == "test_vit" else arch.images(2, (64, 96)), list(arch.TASKS))
        assert outputs.predictions["depth"].shape[2:] == (64, 96)


# ---- the loss -------------------------------------------------------------------------------------------------------


class _Twice(MTLNetwork):
    """Predicts with a head per task, and a second time with another as auxiliary prediction of the given weights."""

    def __init__(self, tasks, weights):
        super().__init__()
        self.weights = weights
        self.heads = nn.ModuleDict({name: nn.Linear(3, task.channels) for name, task in tasks.items()})
        self.more = nn.ModuleDict({name: nn.Linear(3, task.channels) for name, task in tasks.items()})
        self.dense = {name: task.dense for name, task in tasks.items()}

    def _apply_head(self, head, name, image):
        x = (image / 255).movedim(1, -1)
        return head(x).movedim(-1, 1) if self.dense[name] else head(x.mean((1, 2)))

    def forward(self, image, tasks):
        first = {name: self._apply_head(self.heads[name], name, image) for name in tasks}
        second = {name: self._apply_head(self.more[name], name, image) for name in tasks}
        return Outputs(first, auxiliary={name: [(w, second[name]) for w in self.weights] for name in tasks})

    def task_modules(self, task):
        return [self.heads[task], self.more[task]]


def batch(tasks):
    generator = torch.Generator().manual_seed(3)
    depth = 1 + torch.rand(2, 1, 4, 6, generator=generator)
    depth[0, :, :2] = 255
    targets = {
        "semseg": torch.randint(0, 5, (2, 4, 6), generator=generator),
        "depth": depth,
        "kind": torch.tensor([-1, 2]),
    }
    return {"image": arch.images(size=(4, 6)), "targets": {name: targets[name] for name in tasks}}


def test_auxiliary_predictions_add_weighted_loss_sums_over_valid_elements():
    tasks = {name: arch.TASKS[name] for name in ("semseg", "depth", "kind")}
    method = MTLMethod(MethodSpec(tasks))
    method.network = _Twice(tasks, (0.5, 0.25))
    given = batch(tasks)
    sums = loss_sums(method.network, tasks, given, list(tasks))
    outputs = method.network(given["image"], list(tasks))
    for name, found in zip(tasks, sums, strict=True):
        own, more = (
            tasks[name].loss(p, given["targets"][name])
            for p in (outputs.predictions[name], outputs.auxiliary[name][0][1])
        )
        torch.testing.assert_close(found, own + 0.75 * more)
        assert more > 0
    valid = given["targets"]["depth"][:, 0] != 255  # by hand: L1 over labelled pixels
    first, second = outputs.predictions["depth"][:, 0], outputs.auxiliary["depth"][0][1][:, 0]
    errors = ((p - given["targets"]["depth"][:, 0]).abs()[valid].sum() for p in (first, second))
    own, more = errors
    torch.testing.assert_close(sums[1], own + 0.75 * more)
