"""The family `timm`: encoders of images, and the decoder on their feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.errors import DataError
from mtlbench.networks.decoder import ConvBlock, Neck, build_heads, head_factor
from mtlbench.networks.encoder import build_encoder, check_options, encoder_exists, weights_identity
from mtlbench.networks.family import Family, Model, Parts
from mtlbench.tasks import Task
from mtlbench.tasks.inputs import IMAGES


class Images(Family):
    """8-bit images and timm's networks."""

    name = "timm"
    takes = IMAGES

    def check_encoder(self, name: str) -> None:
        """Checks that timm has the encoder."""
        encoder_exists(name)

    def check_options(self, name: str, options: Mapping[str, Any]) -> None:
        """Checks for options that timm would ignore, and for those that mtlbench sets itself."""
        check_options(name, options)

    def weights_identity(self, name: str, weights: str | None) -> str:
        """Identifies weights by timm's tag or by the hash of their file."""
        return weights_identity(name, weights)

    def parts(self, tasks: Mapping[str, Task], model: Model) -> Parts:
        """Returns a timm encoder, a convolutional neck, and dense or whole-image heads."""
        height, width = model.image_size
        size = (height, width)
        encoder = build_encoder(model.name, image_size=size, weights=model.weights, options=model.encoder_options)
        neck = Neck(encoder.channels, encoder.strides, model.decoder_channels)
        factor = head_factor(model.upsampling, neck.stride)
        return Parts(encoder, neck, build_heads(tasks, model.decoder_channels, size, factor))

    def block(self, width: int) -> nn.Module:
        """Returns a 3 x 3 convolution block."""
        return ConvBlock(width, width)

    def example(self, model: Model, count: int = 1) -> Tensor:
        """Returns black images (count, 3, H, W)."""
        return torch.zeros(count, 3, *model.image_size, dtype=torch.uint8)

    def check(self, inputs: Any) -> None:
        """Checks that images are uint8 (B, 3, H, W)."""
        if not isinstance(inputs, Tensor):
            raise DataError(
                f"Images are a tensor. Found {type(inputs).__name__}. Give torch.from_numpy(x) of an array."
            )
        if inputs.dtype != torch.uint8:
            raise DataError(f"Images are uint8, 0..255. Found {inputs.dtype}. Give (x * 255).round().to(torch.uint8).")
        if inputs.ndim != 4 or inputs.shape[1] != 3 or not inputs.numel():
            raise DataError(
                f"Images have the shape (B, 3, H, W), RGB. Found {tuple(inputs.shape)}. Give x[None] of a single "
                "image, x.permute(0, 3, 1, 2) of images whose last axis is colour, and three equal channels of grey "
                "ones."
            )

    def check_maps(self, inputs: Any, maps: Mapping[str, Tensor]) -> None:
        """Checks that predicted maps have the size of the images."""
        size = inputs.shape[-2:]
        other = next((p.shape[-2:] for p in maps.values() if p.shape[-2:] != size), None)
        if other is not None:
            raise DataError(
                f"This network predicts maps of {tuple(other)} (height, width), so images have that size. Found "
                f"{tuple(size)}. Resize the images, as `mtlbench predict` does, and the predictions back."
            )
