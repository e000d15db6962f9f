"""MTI-Net: its decoder, scale by scale, and its method."""

from __future__ import annotations

import pytest
import torch

from mtlbench.errors import MethodError
from mtlbench.methods.architectures.mti_net import MTINet
from mtlbench.networks.mti_net import Aggregation, FeaturePropagation
from tests.support import network_checks as arch


@pytest.mark.parametrize("size", arch.SIZES)
@pytest.mark.parametrize("kind", arch.MODELS)
def test_shapes_and_supervision_at_every_scale(kind, size):
    net = arch.network(MTINet, arch.model(kind, size), auxiliary=0.5)
    arch.assert_shapes(net, arch.TASKS, size)
    auxiliary = net(arch.images(size=size), ["kind", "depth"]).auxiliary
    assert list(auxiliary) == ["depth"] and [weight for weight, _ in auxiliary["depth"]] == [0.5] * 4
    arch.assert_subset_is_alike(net, arch.TASKS, size)


@pytest.mark.parametrize("tasks", [list(arch.TASKS), ["semseg", "kind"], ["depth"], ["kind"]])
def test_ownership_is_the_partition_that_gradients_show(tasks):
    chosen = {name: arch.TASKS[name] for name in tasks}
    arch.assert_partition(arch.network(MTINet, arch.model("vit"), chosen), chosen)


def test_precisions_and_cuts():
    net = arch.network(MTINet, arch.model("vit"))
    arch.assert_cut_does_not_matter(net, arch.TASKS)
    arch.assert_precisions(net, arch.TASKS)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("cnn", [(8, 12), (4, 6), (2, 3), (1, 2)]),
        ("vit", [(8, 12), (4, 6), (2, 3), (1, 2)]),
    ],
)
def test_scales_halve_also_on_the_one_grid_of_a_transformer(kind, sizes):
    net = arch.network(MTINet, arch.model(kind))
    assert net.decoder.pyramid.sizes == sizes
    maps = net.encoder(net.encoder.normalise(arch.images()))
    for features, size in zip(net.decoder.scale_features(maps), sizes, strict=True):
        assert {task: tuple(f.shape) for task, f in features.items()} == {t: (2, 8, *size) for t in arch.DENSE}


# ---- propagation between scales -------------------------------------------------------------------------------------


def features(tasks="abc", channels=4, size=(3, 5)):
    torch.manual_seed(2)
    return {task: torch.randn(2, channels, *size) for task in tasks}


def test_the_mask_sums_to_one_over_tasks():
    module = FeaturePropagation("x", "abc", 4)
    mask = module.mask(torch.stack(list(features().values()), 1))
    torch.testing.assert_close(mask.sum(1), torch.ones(2, 4, 3, 5))
    assert mask.std() > 0.01
    alone = FeaturePropagation("x", "a", 4)
    assert torch.equal(alone.mask(features("a")["a"][:, None]), torch.ones(2, 1, 4, 3, 5))


def test_the_mask_belongs_to_its_task_and_channel():
    module = FeaturePropagation("x", "ab", 2)
    with torch.no_grad():  # channel 0 takes all of task a, channel 1 all of task b
        module.logits[-1].weight.zero_()
        module.logits[-1].bias.copy_(torch.tensor([50.0, -50.0, -50.0, 50.0]))
    seen = []
    module.reduce.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    given = features("ab", channels=2)
    out = module(given)
    zero = torch.zeros(2, 3, 5)
    torch.testing.assert_close(seen[0], torch.stack((given["a"][:, 0], zero, zero, given["b"][:, 1]), 1))
    # Without the gate of the last block, a task gets its own feature plus half of the summary: σ(0) = 1/2.
    for gate in module.select.values():
        for p in gate.parameters():
            p.data.zero_()
    summary = module.reduce(seen[0])
    out = module(given)
    torch.testing.assert_close(out["b"], given["b"] + summary / 2)


def test_a_scale_hears_of_the_coarser_one_and_not_of_the_finer():
    net = arch.network(MTINet, arch.model("cnn", (64, 96))).eval()
    maps = [m.detach() for m in net.encoder(net.encoder.normalise(arch.images(size=(64, 96))))]
    before = net.decoder.scale_features(maps)
    maps[1] = maps[1] + 1
    changed = [
        not torch.equal(a["depth"], b["depth"]) for a, b in zip(before, net.decoder.scale_features(maps), strict=True)
    ]
    assert changed == [True, True, False, False]


def test_the_head_joins_all_scales_at_the_finest():
    torch.manual_seed(0)
    head = Aggregation(2, 4, 3, (8, 12))
    fine, coarse = torch.randn(1, 4, 4, 6), torch.randn(1, 4, 2, 3)
    up = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear")
    joined = head.predict(head.fuse(torch.cat((fine, up), 1)))
    assert joined.shape == (1, 3, 8, 12)
    torch.testing.assert_close(head([fine, coarse]), joined)


def test_zeroed_messages_leave_each_task_its_own_features():
    net = arch.network(MTINet, arch.model("vit")).eval()
    for exchange in net.decoder.distil:
        for p in exchange.values.parameters():
            p.data.zero_()
    maps = net.encoder(net.encoder.normalise(arch.images()))
    own = [f["depth"] for f in net.decoder.scale_features(maps)]
    predictions, _ = net.decoder(maps, ["depth"])
    assert torch.equal(predictions["depth"], net.decoder.heads["depth"](own))


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_weight_outside_its_range_is_refused(value):
    with pytest.raises(MethodError, match="auxiliary.*>= 0"):
        arch.network(MTINet, arch.model("vit"), auxiliary=value)
