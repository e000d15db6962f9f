"""The transformer with a stem of convolutions, heads that upsample by themselves, and the weights that are shipped."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import pretrain
from mtlbench.errors import SuiteError
from mtlbench.networks.decoder import DenseHead
from mtlbench.networks.dense import build_dense
from mtlbench.networks.encoder import build_encoder, shipped, weights_identity
from mtlbench.networks.encoder_stages import Stages
from mtlbench.networks.experts.network import ExpertNetwork
from mtlbench.networks.experts.trunk import ExpertOptions
from mtlbench.networks.feature_exchange import ExchangeNetwork
from mtlbench.tasks import Depth, SemanticSegmentation

TASKS = {"semseg": SemanticSegmentation("semseg", classes=5), "depth": Depth("depth")}
SIZE = (32, 48)
MODEL = {"encoder": "stem_vit_tiny", "image_size": SIZE, "decoder_channels": 8}
LARGEST = 8 * 2**20


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def images(batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, *SIZE), dtype=torch.uint8)


def test_the_stem_gives_the_finest_map() -> None:
    encoder = build_encoder("stem_vit_tiny", image_size=SIZE)
    maps = encoder(encoder.normalise(images()))
    assert encoder.strides == [4, 8, 8, 8] and encoder.channels == [64, 96, 96, 96]
    assert [tuple(m.shape) for m in maps] == [(2, 64, 8, 12), *[(2, 96, 4, 6)] * 3]


def test_the_last_map_is_that_of_timm() -> None:
    encoder = build_encoder("stem_vit_tiny", image_size=SIZE).eval()
    image = encoder.normalise(images())
    own = encoder.trunk.model.forward_intermediates(image, indices=[3], norm=False, intermediates_only=True)[0]
    assert torch.allclose(encoder(image)[-1], own, atol=1e-5)


def test_stages_return_the_encoder_s_maps_block_by_block() -> None:
    encoder = build_encoder("stem_vit_tiny", image_size=SIZE)
    image = encoder.normalise(images())
    stages, maps = Stages(encoder), encoder(image)
    state = stages.start(image)
    assert len(stages) == len(maps)
    for i, expected in enumerate(maps):
        for j in range(len(stages.blocks[i])):
            state = stages.run(i, state, slice(j, j + 1))
        assert torch.equal(state.map, expected)


def test_experts_read_the_stem_too() -> None:
    network = ExpertNetwork(TASKS, ExpertOptions(experts=2, top_k=1), **MODEL)
    predictions = network(images(), list(TASKS)).predictions
    assert {name: tuple(p.shape) for name, p in predictions.items()} == {
        "semseg": (2, 5, *SIZE),
        "depth": (2, 1, *SIZE),
    }
    sum(p.square().sum() for p in predictions.values()).backward()
    assert all(p.grad is not None for p in network.encoder.model.patch_embed.parameters())


def test_an_image_that_is_no_multiple_of_the_stride_is_refused() -> None:
    with pytest.raises(SuiteError, match="multiples of 8"):
        build_encoder("stem_vit_tiny", image_size=(36, 48))


def test_a_learned_head_starts_as_repetition_and_can_place_a_boundary_within_a_position() -> None:
    head = DenseHead(4, 2, (16, 16), factor=4)
    shared = torch.randn(1, 4, 4, 4)
    blocks = head(shared).unfold(2, 4, 4).unfold(3, 4, 4)  # (1, 2, 4, 4, 4, 4)
    assert torch.equal(blocks, blocks[..., :1, :1].expand_as(blocks))
    optimiser = torch.optim.Adam(head.parameters(), lr=0.02)
    truth = torch.zeros(1, 16, 16).long()
    truth[:, :, 1::4] = 1  # one column of four: no bilinear map of the grid has it
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(head(shared), truth).backward()
        optimiser.step()
    assert (head(shared).argmax(1) == truth).all()


def test_upsampling_is_by_interpolation_unless_asked_for() -> None:
    plain, learned = build_dense(TASKS, MODEL), build_dense(TASKS, {**MODEL, "upsampling": "learned"})
    assert plain.heads["depth"][1].out_channels == 1 and learned.heads["depth"][1].out_channels == 16
    assert learned(images(), ["depth"]).predictions["depth"].shape == (2, 1, *SIZE)
    with pytest.raises(SuiteError, match="Did you mean 'learned'"):
        build_dense(TASKS, {**MODEL, "upsampling": "learn"})
    with pytest.raises(SuiteError, match="upsampling: bilinear"):
        ExchangeNetwork(TASKS, lambda *_: pytest.fail("not built"), **{**MODEL, "upsampling": "learned"})


@pytest.mark.parametrize("name", shipped())
def test_shipped_weights_load_and_are_small(name: str) -> None:
    file = shipped()[name]
    assert file.stat().st_size < LARGEST
    made = pretrain.ENCODERS[name]
    encoder = build_encoder(
        made["encoder"], image_size=(48, 48), weights=f"mtlbench:{name}", options=made.get("encoder_options")
    )
    stored = load_file(file)
    for key, value in encoder.trunk.model.named_parameters():
        assert torch.equal(value, stored[key].float()), key


def test_shipped_weights_fit_other_sizes_and_name_their_content(tmp_path) -> None:
    file = shipped()["scenes"]
    encoder = build_encoder("stem_vit_tiny", image_size=(64, 48), weights="mtlbench:scenes")
    assert encoder(encoder.normalise(torch.zeros(1, 3, 64, 48, dtype=torch.uint8)))[-1].shape == (1, 96, 8, 6)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(file.read_bytes())
    assert weights_identity("stem_vit_tiny", "mtlbench:scenes") == weights_identity("stem_vit_tiny", str(copy))


def test_an_unknown_name_of_weights_offers_the_closest() -> None:
    with pytest.raises(SuiteError, match="Did you mean 'scenes'"):
        build_encoder("stem_vit_tiny", image_size=(48, 48), weights="mtlbench:scene")
