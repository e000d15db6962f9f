"""Families of encoders: names, options, what they take, and networks on vectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtlbench.errors import DataError, SuiteError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.families import family_of
from mtlbench.networks.family import Model
from mtlbench.networks.vectors import VectorEncoder
from mtlbench.tasks import Classification, Depth, Regression, Task
from mtlbench.training.build import build_method

TASKS: dict[str, Task] = {"kind": Classification("kind", classes=3), "size": Regression("size")}


def made(name: str, encoder: str = "mlp:residual", tasks: dict[str, Task] = TASKS, **model: Any) -> MTLMethod:
    options = {"width": 16, "depth": 2}
    model = {"encoder": encoder, "encoder_options": options, "decoder_channels": 8, "inputs": {"features": 5}, **model}
    torch.manual_seed(0)
    method = build_method({"path": name, "arguments": {}}, MethodSpec(tasks, model))
    method.configure_model()
    return method.eval()


def test_a_plain_name_is_timms() -> None:
    assert family_of("resnet18") is family_of("timm:resnet18") and family_of("mlp:plain").takes == "vectors"
    with pytest.raises(SuiteError, match="family of encoders 'mpl'.*mlp"):
        family_of("mpl:plain")


@pytest.mark.parametrize(
    "name", ["uniform", "mmoe", "dselect_k", "ple", "moe", "task_moe", "m3vit", "dense_conditioned"]
)
def test_predictions_on_vectors_do_not_depend_on_other_rows_or_tasks(name: str) -> None:
    method, x = made(name), torch.randn(6, 5)
    both = method(x)
    assert both["kind"].shape == (6, 3) and both["size"].shape == (6, 1)
    assert torch.allclose(method(x[2:3], ["size"])["size"], both["size"][2:3], atol=1e-6)
    assert not torch.allclose(method(-x)["size"], both["size"])


def test_experts_start_as_the_dense_network_that_they_replace() -> None:
    """With experts that copy the dense MLP and gates that sum to 1, `moe` predicts what `uniform` predicts."""
    x, dense = torch.randn(4, 5), made("uniform")
    torch.manual_seed(0)
    model = dense.spec.model
    sparse = build_method({"path": "moe", "arguments": {"start": "copy"}}, MethodSpec(TASKS, model))
    sparse.configure_model()
    assert torch.allclose(sparse.eval()(x)["size"], dense(x)["size"], atol=1e-5)


def test_a_residual_block_adds_to_what_it_reads() -> None:
    encoder = VectorEncoder(3, residual=True, width=4, depth=1)
    with torch.no_grad():
        for parameter in encoder.blocks[0].mlp.parameters():
            parameter.zero_()
    x = torch.randn(2, 3)
    assert torch.equal(encoder(x)[0], encoder.norm(encoder.embed(x)))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 4), r"vectors \(B, 5\). Found \(2, 4\)"),
        (torch.zeros(5), r"floating-point tensor.*Found torch.float32 \(5,\).*x\[None\]"),
        (torch.zeros(2, 5).long(), "Found torch.int64"),
        ([[0.0] * 5], "Found list"),
    ],
)
def test_vectors_of_another_form(inputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        made("uniform")(inputs)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("plain", {"wdith": 3}, "'wdith'.*width"),
        ("plain", {"mlp_ratio": 2.0}, "mlp_ratio"),
        ("residual", {"width": 2.5}, "width of the encoder mlp:residual is a whole number from 1"),
        ("residual", {"depth": True}, "depth.*whole number"),
        ("residual", {"mlp_ratio": 0.0}, "mlp_ratio"),
        ("plain", {"dropout": 1}, "dropout.*from 0 to below 1"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        family_of("mlp:plain").check_options(name, options)


def test_what_vectors_cannot_have() -> None:
    with pytest.raises(SuiteError, match="no pretrained weights"):
        made("uniform", weights="timm")
    with pytest.raises(SuiteError, match="Dense tasks need images.*depth"):
        made("uniform", tasks={"depth": Depth("depth")})
    with pytest.raises(SuiteError, match="length of its vectors.*input_sizes"):
        made("uniform", inputs=None)
    with pytest.raises(SuiteError, match="residual blocks.*mlp:residual"):
        made("task_moe", "mlp:plain")


def test_examples_fit_their_network() -> None:
    for model in ({"encoder": "mlp:plain", "inputs": {"features": 7}}, {"encoder": "resnet18", "image_size": [8, 12]}):
        described = Model(**model)
        found = family_of(described.encoder).example(described, 2)
        family_of(described.encoder).check(found)
        assert len(found) == 2
