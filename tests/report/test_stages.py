"""An encoder by stages gives the maps of the encoder."""

from __future__ import annotations

import copy

import pytest
import torch

from mtlbench.errors import SuiteError
from mtlbench.networks.encoder import build_encoder
from mtlbench.networks.encoder_stages import Stages, State

SMALL = {"patch_size": 8, "embed_dim": 32, "num_heads": 2}
ENCODERS = {
    "resnet18": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "mobilenetv3_small_050": {},
    "densenet121": {"growth_rate": 4, "block_config": (2, 2, 2, 2)},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 24},
    "vit_tiny_patch16_224": {**SMALL, "depth": 6},
    "deit_tiny_distilled_patch16_224": {**SMALL, "depth": 2},
    "vit_small_patch14_dinov2": {**SMALL, "depth": 3},
    "vit_base_patch16_clip_224": {**SMALL, "depth": 1},
    "vit_base_patch16_siglip_224": {**SMALL, "depth": 1},
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def made(name, size=(64, 96)):
    return build_encoder(name, image_size=size, options=ENCODERS[name]).eval()


def maps(stages, image):
    state, found = stages.start(image), []
    for i in range(len(stages)):
        state = stages.run(i, state)
        found.append(state.map)
    return found


@pytest.mark.parametrize("name", ENCODERS)
def test_maps_are_those_of_the_encoder(name):
    encoder, image = made(name), torch.randn(2, 3, 64, 96)
    found, wanted = maps(Stages(encoder), image), encoder(image)
    assert len(found) == len(wanted) == len(encoder.channels)
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_stage_in_parts_is_the_stage(name):
    stages, image = Stages(made(name)), torch.randn(1, 3, 64, 96)
    state = stages.start(image)
    for i, blocks in enumerate(stages.blocks):
        whole = stages.run(i, state)
        for b in range(len(blocks)):
            state = stages.run(i, state, slice(b, b + 1))
        assert torch.equal(state.map, whole.map)
        assert torch.equal(stages.run(i, state, slice(0, 0)).map, state.map)


def test_gradients_are_those_of_the_encoder():
    encoder, image = made("vit_tiny_patch16_224").double(), torch.randn(2, 3, 64, 96).double()
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    one, other = (
        torch.autograd.grad(sum(m.square().sum() for m in found), parameters)
        for found in (maps(Stages(encoder), image), encoder(image))
    )
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


def test_blocks_of_a_stage():
    stages = Stages(made("resnet18"))
    assert [[type(b).__name__ for b in blocks] for blocks in stages.blocks] == [
        ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "BasicBlock", "BasicBlock"],
        *[["BasicBlock"] * 2] * 3,
    ]
    vit = made("vit_tiny_patch16_224")  # six blocks in four stages
    assert [len(blocks) for blocks in Stages(vit).blocks] == [1, 2, 1, 2]
    assert [b for blocks in Stages(vit).blocks for b in blocks] == list(vit.trunk.model.blocks)


def test_a_changed_map_goes_on_and_prefix_tokens_stay():
    stages, image = Stages(made("vit_tiny_patch16_224")), torch.randn(2, 3, 64, 96)
    state = stages.run(0, stages.start(image))
    assert state.map.shape == (2, 32, 8, 12) and state.prefix.shape == (2, 1, 32)
    changed = state.with_map(2 * state.map)
    assert changed.prefix is state.prefix
    assert not torch.allclose(stages.run(1, changed).map, stages.run(1, state).map)


def test_a_view_adds_no_module_and_follows_a_copy():
    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = made("test_efficientnet")
            self.stages = Stages(self.encoder)

    holder = Holder()
    assert {name.split(".")[0] for name in holder.state_dict()} == {"encoder"}
    other = copy.deepcopy(holder)
    with torch.no_grad():
        for p in other.encoder.parameters():
            p.zero_()
    image = torch.randn(1, 3, 64, 96)
    assert all(not m.any() for m in maps(other.stages, image)) and maps(holder.stages, image)[-1].any()


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "beit_base_patch16_224", "hrnet_w18_small"])
def test_what_cannot_be_run_by_stages_is_refused(name):
    options = {} if "hrnet" in name else {**SMALL, "depth": 1}
    encoder = build_encoder(name, image_size=(64, 96), options=options)
    with pytest.raises(SuiteError, match=r"stage by stage.*vit_\*.*resnet\*"):
        Stages(encoder)


def test_a_block_that_returns_several_tensors_is_refused():
    class Two(torch.nn.Module):
        def forward(self, x):
            return x, x

    stages = Stages(made("resnet18"))
    stages.blocks[0].append(Two())
    with pytest.raises(SuiteError, match="Two returns a tuple"):
        stages.run(0, State(torch.randn(1, 3, 32, 32)))
