"""Images of another form or size than a network takes are refused with rule, fact and remedy, not with an assertion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mtlbench.errors import DataError, MethodError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.method.forward import training_losses
from mtlbench.networks.encoder import build_encoder
from mtlbench.tasks import Classification, Depth
from mtlbench.training.build import build_method

VIT = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_options": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
}
CNN = {"encoder": "test_resnet"}
DEPTH, KIND = Depth("depth"), Classification("kind")


def method(model: dict[str, Any], *tasks: Any) -> MTLMethod:
    spec = MethodSpec({task.name: task for task in tasks}, {"image_size": [16, 24], "decoder_channels": 8, **model})
    made = build_method({"path": "uniform", "arguments": {}}, spec)
    made.configure_model()
    return made.eval()


def black(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (black(1, 3, 24, 16), r"images of one size, \(16, 24\).*model.image_size.*Found \(24, 16\).*Resize"),
        (black(1, 3, 17, 25), r"\(16, 24\).*Found \(17, 25\)"),
        (black(3, 16, 24), r"\(B, 3, H, W\), RGB. Found \(3, 16, 24\).*x\[None\]"),
        (black(1, 16, 24, 3), r"Found \(1, 16, 24, 3\).*permute"),
        (black(1, 1, 16, 24), r"Found \(1, 1, 16, 24\).*grey"),
        (black(0, 3, 16, 24), r"Found \(0, 3, 16, 24\)"),
        (torch.zeros(1, 3, 16, 24), r"uint8, 0..255. Found torch.float32"),
        (np.zeros((1, 3, 16, 24), np.uint8), "a tensor. Found ndarray.*from_numpy"),
    ],
)
def test_images_of_another_form(images: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        method(VIT, DEPTH)(images)


def test_a_network_that_takes_any_size_but_predicts_maps_of_one() -> None:
    with pytest.raises(DataError, match=r"maps of \(16, 24\).*Found \(32, 40\).*Resize"):
        method(CNN, DEPTH)(black(2, 3, 32, 40))
    assert method(CNN, DEPTH)(black(2, 3, 16, 24))["depth"].shape == (2, 1, 16, 24)
    assert method(CNN, KIND)(black(2, 3, 32, 40))["kind"].shape == (2, 2), "whole images need no size"


def test_one_image_that_batch_norm_sees_as_one_pixel_is_refused() -> None:
    made = method({**CNN, "image_size": [32, 32]}, KIND).train()

    def losses(images: int) -> Any:
        targets = {"kind": torch.zeros(images, dtype=torch.int64)}
        batch = {"image": black(images, 3, 32, 32), "targets": targets, "counts": {"kind": images}}
        return training_losses(made.network, made.tasks, batch, lambda *_: {})

    with pytest.raises(MethodError, match=r"BatchNorm.*one image on a rank, of 32 x 32 pixels.*trainer.batch_size"):
        losses(1)
    assert losses(2).sums[0].isfinite()


def test_encoders_that_interpolate_their_positions_take_other_sizes() -> None:
    options = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "dynamic_img_size": True}
    made = build_encoder("vit_tiny_patch16_224", image_size=(16, 24), options=options)
    assert made(made.normalise(black(1, 3, 32, 40)))[0].shape[-2:] == (4, 5)
