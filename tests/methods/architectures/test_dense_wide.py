"""The dense control of equal size."""

from __future__ import annotations

import pytest
import torch

from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec
from mtlbench.methods.architectures.dense_wide import DenseWide
from mtlbench.networks.dense import build_dense
from mtlbench.registry import find
from mtlbench.tasks import Depth, Normals, Regression
from mtlbench.tasks.inputs import padded
from tests.support.text_encoders import write_encoder

TASKS = {"depth": Depth("depth"), "normals": Normals("normals")}
MODEL = {
    "encoder": "vit_tiny_patch16_224",
    "image_size": [32, 32],
    "decoder_channels": 8,
    "encoder_options": {"patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3},
}


def size(network):
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(("name", "arguments"), [
    ("task_moe", {}), ("moe", {"experts": 16, "top_k": 4}), ("mod_squad", {"experts": 4}), ("mmoe", {}),
])  # fmt: skip
def test_it_is_as_large_as_the_reference_and_built_like_uniform(name, arguments):
    spec = MethodSpec(TASKS, MODEL)
    wide = DenseWide(spec, as_large_as=name, arguments=arguments)
    torch.manual_seed(3)
    wide.configure_model()
    reference = find(name)(spec, **arguments)
    reference.configure_model()
    unit = 4 * (2 * 48 + 1)  # one hidden unit in each of four blocks
    assert 0 <= size(reference.network) - size(wide.network) < unit
    torch.manual_seed(3)
    options = {**MODEL["encoder_options"], "mlp_ratio": wide.mlp_ratio}
    by_hand = build_dense(TASKS, {**MODEL, "encoder_options": options})
    assert all(torch.equal(a, b) for a, b in zip(wide.network.parameters(), by_hand.parameters(), strict=True))


def test_pretrained_weights_are_not_needed_to_learn_the_size():
    wide = DenseWide(MethodSpec(TASKS, {**MODEL, "weights": "/nowhere"}), as_large_as="moe")
    assert wide.mlp_ratio > 4


@pytest.mark.parametrize("name", ["uniform", "dense_wide"])
def test_the_reference_must_have_a_network_of_its_own(name):
    with pytest.raises(MethodError, match="as_large_as must name a method"):
        DenseWide(MethodSpec(TASKS, MODEL), as_large_as=name)


def test_an_encoder_without_mlps_is_refused():
    model = {**MODEL, "encoder": "test_resnet", "encoder_options": {}}
    with pytest.raises(MethodError, match="MLPs of a transformer"):
        _ = DenseWide(MethodSpec(TASKS, model), as_large_as="mmoe").mlp_ratio


def test_a_wrong_argument_of_the_reference_is_named():
    with pytest.raises(MethodError, match="task_moe: .*expert"):
        DenseWide(MethodSpec(TASKS, MODEL), arguments={"expert": 4})


@pytest.fixture
def pretrained(tmp_path):
    """The dense network, and a model section whose weights are those of its encoder."""
    dense = build_dense(TASKS, MODEL).eval()
    torch.save(dense.encoder.trunk.model.state_dict(), tmp_path / "encoder.pt")
    return dense, {**MODEL, "weights": str(tmp_path / "encoder.pt")}


def test_pretrained_weights_fill_the_first_hidden_units(pretrained):
    dense, model = pretrained
    wide = DenseWide(MethodSpec(TASKS, model), as_large_as="moe").build_network().eval()
    assert size(wide.encoder) > size(dense.encoder)
    image = dense.encoder.normalise(torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8))
    torch.testing.assert_close(wide.encoder(image), dense.encoder(image))
    new = wide.state_dict()["encoder.trunk.model.blocks.0.mlp.fc1.weight"][4 * 48 :]
    assert len(new) and new.abs().min(dim=1).values.max() > 0  # not zero as well, else they would never learn


def test_a_text_encoder_is_widened_and_answers_as_the_pretrained_one(tmp_path):
    folder = write_encoder(tmp_path)
    model = {
        "encoder": "transformers:bert",
        "encoder_options": {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
            "vocab_size": 50, "max_position_embeddings": 14,
        },
        "weights": str(folder),
        "inputs": {"vocabulary": 50, "length": 12},
        "decoder_channels": 8,
    }  # fmt: skip
    spec = MethodSpec({"stars": Regression("stars")}, model)
    arguments = {"experts": 4, "top_k": 1, "placement": "every"}
    wide = DenseWide(spec, as_large_as="task_moe", arguments=arguments).build_network().eval()
    reference = find("task_moe")(spec, **arguments).build_network()
    assert 0 <= size(reference) - size(wide) < 2 * 16 + 1
    inputs = padded([{"tokens": torch.tensor([4, 9, 7])}, {"tokens": torch.tensor([11])}])
    dense = build_dense(spec.tasks, model).eval()
    torch.testing.assert_close(wide.encoder(inputs), dense.encoder(inputs))


def test_a_reference_smaller_than_the_pretrained_network_is_refused(pretrained):
    _, model = pretrained
    method = DenseWide(MethodSpec(TASKS, model), as_large_as="mtlora")
    method.__dict__["mlp_ratio"] = 2.0
    with pytest.raises(MethodError, match="mtlora is smaller than the dense network"):
        method.build_network()
