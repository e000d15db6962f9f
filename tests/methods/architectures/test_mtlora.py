"""MTLoRA: low-rank layers, streams of tasks, and what is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlbench.errors import MethodError, SuiteError
from mtlbench.methods.architectures.mtlora import MTLoRA
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.mtlora import LoRALinear, LowRank, MTLoRANetwork
from tests.support import network_checks as arch

DEEP = {"patch_size": 8, "embed_dim": 32, "depth": 8, "num_heads": 2}  # stages of two blocks
SWIN = {
    "encoder": "swin_tiny_patch4_window7_224",
    "image_size": [64, 96],
    "decoder_channels": 8,
    "encoder_options": {"depths": (2, 1, 2, 2), "embed_dim": 16, "num_heads": (1, 2, 2, 2), "window_size": 4},
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def trained(net):
    """Makes every B differ from zero, as training would."""
    for layer in net.layers:
        for change in (layer.shared, *layer.own.values()):
            nn.init.normal_(change.up.weight, std=0.2)
    return net


@pytest.mark.parametrize("size", arch.SIZES)
def test_shapes(size):
    net = trained(arch.network(MTLoRA, arch.model("vit", size)))
    arch.assert_shapes(net, arch.TASKS, size)
    arch.assert_subset_is_alike(net, arch.TASKS, size)


def test_shapes_of_a_swin():
    net = trained(arch.network(MTLoRA, SWIN))
    arch.assert_shapes(net, arch.TASKS, (64, 96))
    arch.assert_partition(net, arch.TASKS, (64, 96))


@pytest.mark.parametrize("tasks", [list(arch.TASKS), ["depth", "kind"]])
def test_ownership_is_the_partition_that_gradients_show(tasks):
    chosen = {name: arch.TASKS[name] for name in tasks}
    arch.assert_partition(arch.network(MTLoRA, arch.model("vit", encoder_options=DEEP), chosen), chosen)


def test_precisions_and_cuts():
    net = trained(arch.network(MTLoRA, arch.model("vit")))
    arch.assert_cut_does_not_matter(net, arch.TASKS)
    arch.assert_precisions(net, arch.TASKS)


@pytest.mark.parametrize("section", [arch.model("vit", encoder_options=DEEP), SWIN], ids=["vit", "swin"])
def test_zero_b_is_the_pretrained_network_exactly(section):
    net = arch.network(MTLoRA, section).eval()
    plain = DenseNetwork(arch.TASKS, **section).eval()
    state = {
        n.replace(".base.", "."): v for n, v in net.state_dict().items() if ".shared." not in n and ".own." not in n
    }
    plain.load_state_dict(state)
    image = arch.images(size=section["image_size"])
    with torch.no_grad():
        found, expected = (n(image, list(arch.TASKS)).predictions for n in (net, plain))
        for task in arch.TASKS:
            assert torch.equal(found[task], expected[task])
        changed = trained(net)(image, list(arch.TASKS)).predictions
    assert not any(torch.allclose(changed[task], expected[task], atol=1e-3) for task in arch.TASKS)


def test_what_is_trained():
    net = arch.network(MTLoRA, arch.model("vit", encoder_options={**DEEP, "depth": 4}), rank=5, task_rank=2)
    trainable = {name: tuple(p.shape) for name, p in net.named_parameters() if p.requires_grad}
    inside = {name: shape for name, shape in trainable.items() if not name.startswith(("neck.", "heads."))}
    sides = {"attn.qkv": (32, 96), "attn.proj": (32, 32), "mlp.fc1": (32, 128), "mlp.fc2": (128, 32)}
    expected = {}
    for block in range(4):
        for name, (inputs, outputs) in sides.items():
            for change, rank in (("shared", 5), *((f"own.{task}", 2) for task in arch.TASKS)):
                place = f"encoder.trunk.model.blocks.{block}.{name}.{change}"
                expected |= {f"{place}.down.weight": (rank, inputs), f"{place}.up.weight": (outputs, rank)}
    assert inside == expected
    assert not any(p.requires_grad for layer in net.layers for p in layer.base.parameters())


def test_what_is_trained_gets_a_gradient_and_nothing_else():
    net = trained(arch.network(MTLoRA, arch.model("vit")))
    sum(p.square().sum() for p in net(arch.images(), list(arch.TASKS)).predictions.values()).backward()
    for name, p in net.named_parameters():
        assert p.grad.any() if p.requires_grad else p.grad is None, name


def test_a_layer_by_hand():
    torch.manual_seed(1)
    base = nn.Linear(3, 2)
    make = lambda rank: LowRank(3, 2, rank, 4.0, 0.0)  # noqa: E731
    layer = LoRALinear(base, make(2), nn.ModuleDict({"a": make(1), "b": make(1)}))
    x = torch.randn(5, 3)
    assert torch.equal(layer(x), base(x))
    for change in (layer.shared, *layer.own.values()):
        nn.init.normal_(change.up.weight)

    def product(change):
        return change.up.weight @ change.down.weight

    shared = base.weight + 4 * product(layer.shared)
    torch.testing.assert_close(layer(x), x @ shared.T + base.bias)
    layer.running = "b"
    torch.testing.assert_close(layer(x), x @ (shared + 4 * product(layer.own["b"])).T + base.bias)
    assert LowRank(3, 2, 64, 1.0, 0.0).down.weight.shape == (2, 3)


def test_blocks_run_once_but_the_last_of_each_stage():
    net, calls = arch.network(MTLoRA, arch.model("vit", encoder_options=DEEP)), []
    blocks = net.encoder.trunk.model.blocks
    for block in blocks:
        block.register_forward_hook(lambda module, *_: calls.append(module))
    net(arch.images(), ["depth", "normals", "kind"])
    # Per stage: the first block once; the second for three tasks, and for the next stage if there is one.
    assert [calls.count(block) for block in blocks] == [1, 4, 1, 4, 1, 4, 1, 3]
    assert all(layer.running is None for layer in net.layers)


def test_a_tasks_change_stays_in_its_stream():
    net = trained(arch.network(MTLoRA, arch.model("vit", encoder_options=DEEP))).eval()
    with torch.no_grad():
        before = net(arch.images(), list(arch.TASKS)).predictions
        for layer in net.layers:
            if "depth" in layer.own:
                layer.own["depth"].up.weight.mul_(2)
        after = net(arch.images(), list(arch.TASKS)).predictions
    assert [task for task in arch.TASKS if not torch.equal(before[task], after[task])] == ["depth"]


def test_dropout_is_on_the_changes_only():
    net = arch.network(MTLoRA, arch.model("vit"), dropout=0.5)
    once, again = (net(arch.images(), ["depth"]).predictions["depth"] for _ in range(2))
    assert torch.equal(once, again)  # B = 0
    trained(net)
    once, again = (net(arch.images(), ["depth"]).predictions["depth"] for _ in range(2))
    assert not torch.allclose(once, again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"task_rank": 0}, "task_rank"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
    ],
)
def test_values_outside_their_range_are_refused(options, message):
    with pytest.raises(MethodError, match=message):
        arch.network(MTLoRA, arch.model("vit"), **options)


@pytest.mark.parametrize(
    ("encoder", "options", "message"),
    [
        ("resnet18", {}, "has none.*vit_"),
        (
            "swinv2_tiny_window8_256",
            {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 1, 1), "window_size": 2},
            "reads their weights",
        ),
        ("beit_base_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}, "stage by stage"),
    ],
)
def test_other_encoders_are_refused(encoder, options, message):
    with pytest.raises(SuiteError, match=message):
        net = MTLoRANetwork(arch.TASKS, encoder=encoder, image_size=[64, 64], encoder_options=options)
        net(arch.images(size=(64, 64)), ["depth"])
