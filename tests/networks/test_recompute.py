"""Recomputed activations: the same gradients and statistics from less memory, and a refusal where that cannot be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mtlbench.errors import MethodError
from mtlbench.networks.dense import build_dense
from mtlbench.networks.flops import counting
from mtlbench.networks.recompute import Recomputed, blocks_of, recompute_blocks
from mtlbench.tasks import Classification, Depth
from mtlbench.testing.contracts import difference
from mtlbench.testing.toy import toy_spec, trained

TASKS = {"depth": Depth("depth"), "kind": Classification("kind")}
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "drop_path_rate": 0.5, "proj_drop_rate": 0.3}
MODELS = {
    "vit": {"encoder": "vit_tiny_patch16_224", "encoder_options": VIT},
    "resnet": {"encoder": "resnet18"},
}


def pair(kind):
    """Returns a network in training mode, and a copy of it that recomputes."""
    torch.manual_seed(0)
    plain = build_dense(TASKS, {"image_size": [32, 32], "decoder_channels": 8, **MODELS[kind]}).double().train()
    other = copy.deepcopy(plain)
    other.recompute_encoder()
    return plain, other


def images():
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def step(network, passes=2):
    """Returns the bytes that the encoder's graph keeps, the gradients of some backward passes, and the FLOPs."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(2)
    parameters = list(network.parameters())
    with counting(network) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            found = network(images(), list(TASKS)).predictions
        losses = [found["depth"].square().mean(), found["kind"].square().sum()]
        gradients = [
            torch.autograd.grad(loss, parameters, retain_graph=loss is not losses[-1], allow_unused=True)
            for loss in losses[:passes]
        ]
    return sum(kept.values()), gradients, counter.flops


@pytest.mark.parametrize("kind", MODELS)
def test_two_backward_passes_give_the_same_gradients_with_dropout_and_running_statistics(kind):
    plain, other = pair(kind)
    (most, expected, flops), (least, found, same_flops) = step(plain), step(other)
    for a, b in zip([t for row in expected for t in row], [t for row in found for t in row], strict=True):
        assert torch.equal(a, b) if a is not None else b is None
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), other.buffers(), strict=True))
    assert least < 0.6 * most, (least, most)
    assert flops == same_flops  # A budget of FLOPs allows as many steps with the switch as without it.


def test_blocks_run_again_in_every_backward_pass():
    _, other = pair("vit")
    with FlopCounterMode(display=False) as once:
        found = other(images(), list(TASKS)).predictions["depth"].square().mean()
    with FlopCounterMode(display=False) as again:
        found.backward(retain_graph=True)
        found.backward()
    assert again.get_total_flops() > 5 * once.get_total_flops()  # At most 4 if none ran again.


def test_a_block_keeps_its_names_its_class_and_its_copies():
    plain, other = pair("vit")
    assert list(plain.state_dict()) == list(other.state_dict())
    blocks, old = blocks_of(other.encoder), blocks_of(plain.encoder)
    assert all(isinstance(block, (Recomputed, type(o))) for block, o in zip(blocks, old, strict=True))
    twin = copy.deepcopy(blocks[0])
    recompute_blocks([twin])
    assert type(twin) is type(blocks[0]) and twin.norm1 is not blocks[0].norm1


@pytest.mark.parametrize("name", ["task_moe", "mod_squad", "pcgrad", "mtan"])
def test_training_is_bit_identical_routing_included(name, tmp_path):
    plain, recomputed = (
        trained(toy_spec(name, steps=2, local={"gradient_checkpointing": on}), str(tmp_path / str(on)))
        for on in (False, True)
    )
    assert difference(plain, recomputed) == 0.0


def test_a_compiled_network_may_recompute_too(tmp_path):
    both = {"gradient_checkpointing": True, "compile": "aot_eager"}
    plain, other = (
        trained(toy_spec("uniform", steps=2, local=way), str(tmp_path / str(len(way)))) for way in ({}, both)
    )
    assert difference(plain, other) <= 1e-9


def test_gradients_at_other_weights_are_refused(tmp_path):
    with pytest.raises(MethodError, match="gradient_checkpointing=false"):
        trained(toy_spec("samo", steps=1, local={"gradient_checkpointing": True}), str(tmp_path))


@pytest.mark.parametrize("encoder", ["regnety_002", "densenet121"])
def test_an_encoder_without_blocks_is_refused(encoder):
    network = build_dense(TASKS, {"image_size": [32, 32], "decoder_channels": 8, "encoder": encoder})
    with pytest.raises(MethodError, match=r"made of blocks.*gradient_checkpointing=false"):
        network.recompute_encoder()
