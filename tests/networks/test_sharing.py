"""Activations that are held to references, the network on them, its costs: the identities that must hold."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mtlbench.errors import MethodError, SuiteError
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.encoder import build_encoder
from mtlbench.networks.flops import forward_flops
from mtlbench.networks.sharing import costs
from mtlbench.networks.sharing.network import SharingNetwork, activation_distance
from mtlbench.networks.sharing.referenced_vit import ReferencedViT, held, linear_from_reference
from tests.support import network_checks as arch

SIZE = (32, 48)
TASKS = {"depth": arch.TASKS["depth"]}


def vit(name="vit_tiny_patch16_224", **options):
    options = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, **options}
    torch.manual_seed(0)
    encoder = build_encoder(name, image_size=SIZE, options=options)
    for module in encoder.modules():  # LayerScale starts too small to matter.
        if hasattr(module, "gamma"):
            nn.init.normal_(module.gamma, 1.0, 0.1)
    return ReferencedViT(encoder)


def network(share=0.1, **changes):
    """Returns a network in evaluation mode with a share of its entries changed."""
    torch.manual_seed(0)
    net = SharingNetwork(TASKS, **arch.model("vit", SIZE, **changes))
    net.take(DenseNetwork(TASKS, **arch.model("vit", SIZE, **changes)))
    with torch.no_grad():
        for _, delta in net.deltas.named():
            delta.value.normal_(std=0.1)
            delta.logit.copy_(torch.where(torch.rand_like(delta.logit) < share, 5.0, -5.0))
    return net.eval()


# ---- activations ----------------------------------------------------------------------------------------------------


def test_held_by_hand():
    value, reference = torch.tensor([1.0, 1.25, 0.5, 2.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert held(value, reference, 0.25).tolist() == [1.0, 1.25, 0.5, 2.0]
    assert held(value, reference, 0.26).tolist() == [1.0, 1.0, 0.5, 2.0]
    assert torch.equal(held(value, reference, 0.0), value)
    assert torch.equal(held(value, reference, math.inf), reference)


def test_fewer_entries_change_at_larger_thresholds():
    value, reference = torch.randn(500), torch.randn(500)
    counts = [int((held(value, reference, t) != reference).sum()) for t in (0.0, 0.1, 0.3, 1.0, 3.0, math.inf)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 500 and counts[-1] == 0 and len(set(counts)) > 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"qk_norm": True, "init_values": 1e-5}),
        ("deit3_small_patch16_224", {}),
        ("vit_small_patch14_dinov2", {}),
        ("vit_base_patch16_clip_224", {}),
    ],
)
def test_without_references_it_is_timms_network(name, options):
    net = vit(name, **options)
    image = arch.images(size=SIZE)
    with torch.no_grad():
        trace, maps = net(image), net.encoder(net.encoder.normalise(image))
    assert len(trace.maps) == len(maps) and list(trace.activations) == net.places
    for found, expected in zip(trace.maps, maps, strict=True):
        torch.testing.assert_close(found, expected)
    assert {place: value[0].numel() for place, value in trace.activations.items()} == net.sizes()


@pytest.mark.parametrize(
    "name", ["resnet18", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224", "vit_relpos_small_patch16_224"]
)
def test_other_encoders_are_refused(name):
    size = (224, 224)
    with pytest.raises(SuiteError, match="plain vision transformer"):
        ReferencedViT(build_encoder(name, image_size=size))


def test_dropout_is_off_also_in_training():
    net = vit(proj_drop_rate=0.5, drop_path_rate=0.5).train()
    image = arch.images(size=SIZE)
    assert torch.equal(net(image).maps[-1], net(image).maps[-1])
    assert not any(module.training for module in net.modules())


def test_threshold_per_place():
    net, other = vit(init_values=1e-5), vit(init_values=1e-5)
    nn.init.normal_(other.model.blocks[1].attn.proj.weight)
    image = arch.images(size=SIZE)
    with torch.no_grad():
        base = net(image)
        free = other(image, base.activations)
        trace = other(image, base.activations, {"block1.proj": math.inf})
    assert not torch.equal(free.maps[1], base.maps[1])
    # The one difference is held, so nothing differs.
    assert torch.equal(trace.maps[-1], base.maps[-1])
    assert sum(map(int, trace.changed().values())) == 0 < int(free.changed()["block1.proj"])


def test_factors_by_place_part_and_block():
    net, other, image = vit(), vit(), arch.images(size=SIZE)
    other.load_state_dict({name: value * 1.1 for name, value in net.state_dict().items()})
    other.encoder.load_state_dict({n: v for n, v in net.encoder.state_dict().items() if n in ("mean", "std")}, False)
    with torch.no_grad():
        base = net(image).activations
        other.set_factors({"qkv": 2.0, "block1": 0.5, "block1.fc2": 0.0})
        found = other(image, base, 0.2)
        other.set_factors({})
        wanted = dict.fromkeys(other.places, 0.2) | {p: 0.1 for p in other.places if p.startswith("block1.")}
        wanted |= {p: 0.4 for p in other.places if p.endswith(".qkv")} | {"block1.fc2": 0.0}
        named, plain = other(image, base, wanted), other(image, base, 0.2)
    assert all(torch.equal(found.activations[p], named.activations[p]) for p in other.places)
    assert not torch.equal(found.maps[-1], plain.maps[-1])


def test_a_factor_of_zero_holds_nothing_at_any_threshold():
    net, image = network(), arch.images(size=SIZE)
    net.encoder.set_factors({"block2.fc2": 0.0})
    trace = predictions(net, image, math.inf)[1]
    # All that it reads is the base's, its own weights are not.
    assert [place for place, count in trace.changed().items() if count] == ["block2.fc2"]


@pytest.mark.parametrize(("name", "hint"), [("qvk", "'qkv'"), ("block3", "'block"), ("block1.fc", "'block1.fc")])
def test_a_factor_of_no_place_is_refused(name, hint):
    with pytest.raises(SuiteError, match=f"Unknown place '{name}'. Did you mean {hint}"):
        vit().set_factors({name: 1.0})


def test_a_pass_can_be_held_to_the_one_before():
    """Video: the references are those of the same network on another image, and of some places only."""
    net, image = vit(), arch.images(4, SIZE)
    with torch.no_grad():
        before = net(image[:2])
        same = net(image[:2], before.activations, 0.1)
        still = net(image[2:], before.activations, math.inf)
        half = {p: v for p, v in before.activations.items() if p.startswith("block2.")}
        late = net(image[2:], half, math.inf)
        alone = net(image[2:])
    assert sum(map(int, same.changed().values())) == 0
    assert all(torch.equal(a, b) for a, b in zip(still.maps, before.maps, strict=True))
    assert torch.equal(late.maps[1], alone.maps[1]) and not torch.equal(late.maps[2], alone.maps[2])
    assert set(late.changed()) == set(half)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_layer_from_its_reference_is_the_layer(sparse):
    torch.manual_seed(0)
    x_b, base, change = (torch.randn(*shape, dtype=torch.float64) for shape in ((9, 7), (5, 7), (5, 7)))
    bias = torch.randn(5, dtype=torch.float64)
    change[torch.rand_like(change) < 0.8] = 0
    x = x_b.clone()
    x[2:4] += torch.randn(2, 7)
    given = change.to_sparse_csr() if sparse else change
    found = linear_from_reference(x, x_b, x_b @ base.T + bias, base, given)
    torch.testing.assert_close(found, x @ (base + change).T + bias, atol=1e-12, rtol=1e-12)
    found = linear_from_reference(x, x_b, x_b @ base.T + bias, base)
    torch.testing.assert_close(found, x @ base.T + bias, atol=1e-12, rtol=1e-12)


# ---- the network ----------------------------------------------------------------------------------------------------


def predictions(net, image, threshold):
    """Returns trace and prediction at a threshold, and the base's trace."""
    with torch.no_grad():
        base = net.base(image)
        trace = net.trace(image, net.weights(), base, threshold)
        return base, trace, net.decode(trace.maps, ["depth"]).predictions["depth"]


def test_no_change_of_weights_is_the_base_bit_for_bit():
    net, image = network(share=0.0), arch.images(size=SIZE)
    base, trace, _ = predictions(net, image, 0.0)
    assert all(torch.equal(trace.activations[place], base.activations[place]) for place in net.encoder.places)
    assert all(torch.equal(a, b) for a, b in zip(trace.maps, base.maps, strict=True))
    assert sum(map(int, trace.changed().values())) == 0


def test_threshold_zero_is_the_dense_network_bit_for_bit():
    net, image = network(), arch.images(size=SIZE)
    base, trace, prediction = predictions(net, image, 0.0)
    plain = DenseNetwork(TASKS, **arch.model("vit", SIZE)).eval()
    with torch.no_grad():
        free = net.trace(image, net.weights())
        encoder = {name: p.detach() for name, p in net.encoder.encoder.state_dict().items()}
        encoder |= {name.removeprefix("encoder."): p for name, p in net.weights().items()}
        plain.encoder.load_state_dict(encoder)
        plain.neck.load_state_dict(net.neck.state_dict())
        plain.heads.load_state_dict(net.heads.state_dict())
        expected = plain(image, ["depth"]).predictions["depth"]
    assert torch.equal(trace.maps[-1], free.maps[-1]) and not torch.allclose(trace.maps[-1], base.maps[-1])
    torch.testing.assert_close(prediction, expected)


def test_infinite_threshold_is_the_base_bit_for_bit():
    net, image = network(share=0.9), arch.images(size=SIZE)
    base, trace, _ = predictions(net, image, math.inf)
    assert all(torch.equal(a, b) for a, b in zip(trace.maps, base.maps, strict=True))
    assert sum(map(int, trace.changed().values())) == 0


def test_infinite_threshold_is_the_base_where_branches_are_scaled():
    net = network(share=0.9, encoder="deit3_small_patch16_224", encoder_options={**arch.SMALL_VIT["encoder_options"]})
    base, trace, _ = predictions(net, arch.images(size=SIZE), math.inf)
    assert any("ls1" in name for name, _ in net.deltas.named())
    assert all(torch.equal(a, b) for a, b in zip(trace.maps, base.maps, strict=True))


def test_fewer_activations_change_at_larger_thresholds():
    net, image = network(), arch.images(size=SIZE)
    traces = [predictions(net, image, t)[1] for t in (0.0, 0.1, 0.3, 1.0, math.inf)]
    for place in ("tokens", "block0.norm1"):
        counts = [int(trace.changed()[place]) for trace in traces]
        assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1] == 0
    totals = [sum(map(int, trace.changed().values())) for trace in traces]
    assert totals == sorted(totals, reverse=True)


def test_evaluation_is_at_the_networks_threshold_and_training_free():
    net, image = network(), arch.images(size=SIZE)
    net.threshold = 0.3
    expected = predictions(net, image, 0.3)[2]
    with torch.no_grad():
        assert torch.equal(net(image, ["depth"]).predictions["depth"], expected)
        free = net.train()(image, ["depth"])
        assert torch.equal(free.predictions["depth"], predictions(net, image, 0.0)[2])
    assert not torch.equal(free.predictions["depth"], expected)


def test_distance_by_hand():
    net, image = network(), arch.images(size=SIZE)
    base, trace, _ = predictions(net, image, 0.0)
    pairs = [(trace.activations[p].flatten(), base.activations[p].flatten()) for p in net.encoder.places[1:]]
    ours, theirs = (torch.cat(values) for values in zip(*pairs, strict=True))
    torch.testing.assert_close(activation_distance(trace, base), (ours - theirs).abs().mean())
    # The mean, not the sum: twice the images are as far.
    twice = torch.cat([image, image])
    torch.testing.assert_close(
        activation_distance(net.trace(twice, net.weights()), net.base(twice)), activation_distance(trace, base)
    )


def test_what_is_trained():
    net = network().train()
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"deltas", "neck", "heads"}
    plain = DenseNetwork(TASKS, **arch.model("vit", SIZE)).encoder.named_parameters()
    assert {name.removeprefix("encoder.") for name in net.weights()} == {name for name, p in plain if p.requires_grad}
    before = {name: p.clone() for name, p in net.encoder.named_parameters()}
    net(arch.images(size=SIZE), ["depth"]).predictions["depth"].sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == trained
    assert all(torch.equal(p, before[name]) for name, p in net.encoder.named_parameters())


def test_ownership_shapes_precisions():
    torch.manual_seed(0)
    net = SharingNetwork(arch.TASKS, **arch.model("vit"))
    arch.assert_partition(net, arch.TASKS)
    arch.assert_shapes(net, arch.TASKS, SIZE)
    arch.assert_subset_is_alike(net, arch.TASKS)
    arch.assert_cut_does_not_matter(net, arch.TASKS)
    arch.assert_precisions(net, arch.TASKS)


def test_the_base_must_fit():
    net = network()
    deep = {**arch.SMALL_VIT["encoder_options"], "depth": 5}
    with pytest.raises(MethodError, match="has another encoder"):
        net.take(DenseNetwork(TASKS, **arch.model("vit", SIZE, encoder_options=deep)))
    with pytest.raises(MethodError, match="has another encoder"):
        net.take(DenseNetwork(TASKS, **arch.model("cnn", SIZE)))


# ---- costs ----------------------------------------------------------------------------------------------------------


def test_dense_formula_is_what_a_forward_pass_counts():
    net = network()
    plain = DenseNetwork(TASKS, **arch.model("vit", SIZE))
    formula = costs.dense_macs(net.encoder) + costs.attention_macs(net.encoder) + costs.decoder_macs(net)
    assert 2 * formula == forward_flops(plain, arch.images(1, SIZE), ["depth"])


def test_formula_by_hand():
    net = vit(depth=1, class_token=False, global_pool="avg")
    # 24 patches of 3 x 8 x 8 numbers, 32 wide, hidden 128.
    dense = 24 * (192 * 32 + 32 * 96 + 32 * 32 + 32 * 128 + 128 * 32)
    assert costs.dense_macs(net) == dense
    assert costs.shared_macs(net, net.sizes(), {}) == dense
    assert costs.shared_macs(net, dict.fromkeys(net.places, 0), {}) == 0
    changed = {**dict.fromkeys(net.places, 0), "block0.norm1": 10, "block0.act": 3}
    weights = {"encoder.trunk.model.blocks.0.mlp.fc1.weight": 5}
    assert costs.shared_macs(net, changed, weights) == 10 * 96 + 3 * 32 + 5 * 24
    assert costs.attention_macs(net) == 2 * 24 * 24 * 32


def test_storage_is_what_differs():
    net = network()
    weights, base = net.weights(), dict(net.encoder.named_parameters())
    stored = costs.storage(net)
    differ = {name: int((weights[name] != base[name]).sum()) for name in weights}
    assert stored.kept == sum(differ.values()) and 0.05 < stored.kept / stored.entries < 0.15
    # A bit per entry, or an index of ceil(log2(size)) bits per changed entry.
    assert stored.index_bits == sum(
        min(weights[name].numel(), count * (weights[name].numel() - 1).bit_length()) for name, count in differ.items()
    )
    decoder = sum(p.numel() for name, p in net.named_parameters() if name.startswith(("neck", "heads")))
    assert stored.decoder == decoder
    assert stored.parameters == pytest.approx(stored.kept + stored.index_bits / 32 + decoder)
    assert costs.storage(network(share=0.0)).kept == 0
