"""Encoders, decoder and the dense network."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from mtlbench.errors import SuiteError
from mtlbench.networks import encoder as encoders
from mtlbench.networks.dense import DenseNetwork, build_dense
from mtlbench.networks.encoder import build_encoder, encoder_exists, weights_identity
from mtlbench.tasks import Classification, Depth, SemanticSegmentation

TASKS = {"semseg": SemanticSegmentation("semseg", classes=5), "depth": Depth("depth"), "kind": Classification("kind")}
SMALL_VIT = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_options": {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
}
MODELS = {"cnn": {"encoder": "resnet18"}, "vit": SMALL_VIT}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def images(batch=2, height=32, width=48):
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


def network(kind):
    return build_dense(TASKS, {"image_size": [32, 48], "decoder_channels": 12, **MODELS[kind]})


@pytest.mark.parametrize("kind", MODELS)
def test_predictions_have_the_task_shapes_and_the_asked_order(kind):
    predictions = network(kind)(images(), ["kind", "semseg", "depth"]).predictions
    assert list(predictions) == ["kind", "semseg", "depth"]
    assert {name: tuple(p.shape) for name, p in predictions.items()} == {
        "semseg": (2, 5, 32, 48),
        "depth": (2, 1, 32, 48),
        "kind": (2, 2),
    }


@pytest.mark.parametrize("kind", MODELS)
def test_ownership_is_the_partition_that_gradients_show(kind):
    net = network(kind)
    trainable = {id(p) for p in net.parameters() if p.requires_grad}
    reached = {}
    for task in TASKS:
        net.zero_grad(set_to_none=True)
        net(images(), [task]).predictions[task].square().sum().backward()
        reached[task] = {id(p) for p in net.parameters() if p.grad is not None}
    assert set.union(*reached.values()) == trainable
    for task in TASKS:
        others = set.union(*(reached[t] for t in TASKS if t != task))
        assert {id(p) for p in net.task_parameters(task)} == reached[task] - others
    shared = {id(p) for p in net.shared_parameters(list(TASKS))}
    assert shared == set.intersection(*reached.values())


@pytest.mark.parametrize("kind", MODELS)
def test_float64_and_bfloat16_autocast(kind):
    net, image = network(kind).eval(), images()
    single = net(image, list(TASKS)).predictions
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net(image, list(TASKS)).predictions
    double = net.double()(image, list(TASKS)).predictions
    for task, value in single.items():
        assert mixed[task].dtype == torch.float32 and double[task].dtype == torch.float64
        torch.testing.assert_close(double[task].float(), value, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(mixed[task], value, atol=0.1, rtol=0.1)


def test_the_encoder_runs_once_for_all_tasks():
    net, calls = network("vit"), []
    net.encoder.register_forward_hook(lambda *_: calls.append(1))
    net(images(), list(TASKS))
    assert len(calls) == 1


def test_scales_of_a_cnn_and_depths_of_a_transformer():
    cnn = build_encoder("resnet18", image_size=(32, 48))
    assert (cnn.channels, cnn.strides) == ([64, 128, 256, 512], [4, 8, 16, 32])
    assert [tuple(m.shape[2:]) for m in cnn(torch.zeros(1, 3, 32, 48))] == [(8, 12), (4, 6), (2, 3), (1, 2)]
    deep = {"patch_size": 8, "embed_dim": 32, "depth": 8, "num_heads": 2}
    vit = build_encoder("vit_tiny_patch16_224", image_size=(32, 48), options=deep)
    assert (vit.channels, vit.strides, vit.trunk.out_indices) == ([32] * 4, [8] * 4, [1, 3, 5, 7])
    assert {tuple(m.shape) for m in vit(torch.zeros(1, 3, 32, 48))} == {(1, 32, 4, 6)}


@pytest.mark.parametrize("name", ["test_efficientnet", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"])
def test_other_families_return_channels_first(name):
    options = {"depths": (1, 1, 1, 1)} if "swin" in name else {}
    made = build_encoder(name, image_size=(64, 96), options=options).eval()
    maps = made(torch.zeros(1, 3, 64, 96))
    assert [m.shape[1] for m in maps] == made.channels
    assert [96 // m.shape[3] for m in maps] == made.strides


def test_a_parameter_that_reaches_no_map_is_frozen():
    trunk = timm.create_model("test_vit", features_only=True, img_size=(64, 64))
    trunk.model.spare = torch.nn.Linear(3, 3)
    made = encoders.Encoder(trunk, (64, 64))
    frozen = [name for name, p in made.trunk.named_parameters() if not p.requires_grad]
    assert frozen == ["model.spare.weight", "model.spare.bias"]


def test_networks_of_one_architecture_are_traced_once(monkeypatch):
    def built(**options):
        return build_encoder("vit_tiny_patch16_224", image_size=(32, 48), options={"embed_dim": 24, **options})

    first = built(num_heads=2)
    with monkeypatch.context() as patch:
        patch.delattr(encoders, "_trace")
        again = built(num_heads=2)
        with pytest.raises(SuiteError, match="_trace"):
            built(num_heads=3, depth=5)
    assert again.channels == first.channels and again.channels is not first.channels
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in first.parameters()]


def test_normalisation_is_the_pretrained_one_and_not_in_the_state():
    made = build_encoder("vit_tiny_patch16_224", image_size=(32, 32), options={"depth": 1})
    image = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    assert torch.allclose(made.normalise(image), torch.ones(()))  # this model was trained with mean = std = 0.5
    assert not {"mean", "std"} & set(made.state_dict())


def test_an_image_that_the_encoder_cannot_process_is_refused():
    with pytest.raises(SuiteError, match="does not take images of 36 x 36.*image_size"):
        build_encoder("hrnet_w18_small", image_size=(36, 36))


def test_unknown_names_offer_near_ones():
    with pytest.raises(SuiteError, match="Did you mean.*'resnet18'"):
        encoder_exists("resnt18")
    with pytest.raises(SuiteError, match=r"Did you mean.*'resnet18\.a1_in1k'"):
        DenseNetwork(TASKS, image_size=(32, 32), encoder="resnet18.a1in1k")
    encoder_exists("resnet18.a1_in1k")


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ((30, 48), {"depth": 1}, "multiple of the encoder's patch size, 16"),
        ((32, 32), {"deepth": 1}, "encoder_options.*deepth"),
        ((32, 32), {"img_size": 32}, "must not hold .*img_size"),
        ((32, 32), {"depth:1": None}, "'depth:1' has none. YAML needs a space after the colon"),
    ],
)
def test_bad_sizes_and_options_are_refused(size, options, message):
    with pytest.raises(SuiteError, match=message):
        build_encoder("vit_tiny_patch16_224", image_size=size, options=options)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_round_trip(tmp_path, suffix):
    options = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    source = timm.create_model("vit_tiny_patch16_224", img_size=(32, 32), num_classes=0, **options)
    path = tmp_path / f"weights{suffix}"
    save_file(source.state_dict(), path) if suffix == ".safetensors" else torch.save(source.state_dict(), path)
    made = build_encoder("vit_tiny_patch16_224", image_size=(32, 32), weights=str(path), options=options)
    state = source.state_dict()
    for name, parameter in made.trunk.model.named_parameters():
        assert torch.equal(parameter, state[name])
    # Another image size: timm resamples the position embedding.
    build_encoder("vit_tiny_patch16_224", image_size=(32, 48), weights=str(path), options=options)
    assert weights_identity("vit_tiny_patch16_224", str(path)).startswith("sha256:")


def test_a_file_is_checked_again_when_it_changes(tmp_path):
    path, state = tmp_path / "weights.pth", timm.create_model("test_resnet").state_dict()
    torch.save(state, path)
    for _ in range(2):
        made = build_encoder("test_resnet", image_size=(32, 32), weights=str(path))
        assert torch.equal(made.trunk.conv1[0].weight, state["conv1.0.weight"])
    torch.save({name: value for name, value in state.items() if name != "conv1.0.weight"}, path)
    with pytest.raises(SuiteError, match="lacks 1 tensors of encoder 'test_resnet', for example conv1.0.weight"):
        build_encoder("test_resnet", image_size=(32, 32), weights=str(path))


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    with pytest.raises(SuiteError, match="does not fit|lacks"):
        build_encoder("vit_tiny_patch16_224", image_size=(32, 32), weights=str(path), options={"depth": 1})
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(SuiteError, match="lacks"):
        build_encoder("resnet18", image_size=(32, 32), weights=str(path))
    path.write_text("no checkpoint")
    with pytest.raises(SuiteError, match="not a checkpoint"):
        build_encoder("resnet18", image_size=(32, 32), weights=str(path))
    with pytest.raises(SuiteError, match="path of an existing file"):
        build_encoder("resnet18", image_size=(32, 32), weights=str(tmp_path / "absent.pth"))


def test_a_failed_download_names_the_remedy(monkeypatch):
    real = timm.create_model

    def offline(*args, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("no route to host")
        return real(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(SuiteError, match="set `weights` to the file's path.*no route"):
        build_encoder("resnet18", image_size=(32, 32), weights="timm")


def test_identity_of_weights():
    assert weights_identity("resnet18", None) == "random"
    assert weights_identity("resnet18", "timm") == "timm:a1_in1k"
    assert weights_identity("resnet18.tv_in1k", "timm") == "timm:tv_in1k"
    with pytest.raises(SuiteError, match="path of an existing file"):
        weights_identity("resnet18", "/absent")
