"""The plain multi-task network: one shared encoder and neck, one head per task (hard parameter sharing)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.decoder import Neck, build_heads, head_factor
from mtlbench.networks.encoder import build_encoder
from mtlbench.tasks import Task


class DenseNetwork(MTLNetwork):
    """A shared encoder and neck with one head per task. The encoder runs once, whatever the number of tasks."""

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        image_size: Sequence[int],
        encoder: str = "resnet18",
        encoder_options: Mapping[str, Any] | None = None,
        weights: str | None = None,
        decoder_channels: int = 64,
        upsampling: str = "bilinear",
    ) -> None:
        """Builds the network; the arguments are the keys of a suite's ``model`` section.

        Args:
            tasks: Tasks by name.
            image_size: Height and width of images in pixels.
            encoder: timm's name.
            encoder_options: Further arguments of ``timm.create_model``.
            weights: None (random), ``"timm"``, ``"mtlbench:<name>"`` or a path; see `build_encoder`.
            decoder_channels: Channels of neck and heads.
            upsampling: ``"bilinear"``, or ``"learned"`` for heads that predict every pixel of the neck's grid.

        Raises:
            SuiteError: See `build_encoder`.
        """
        super().__init__()
        height, width = image_size
        self.encoder = build_encoder(encoder, image_size=(height, width), weights=weights, options=encoder_options)
        self.neck = Neck(self.encoder.channels, self.encoder.strides, decoder_channels)
        factor = head_factor(upsampling, self.neck)
        self.heads = build_heads(tasks, decoder_channels, (height, width), factor)

    def shared_map(self, image: Tensor) -> Tensor:
        """Returns the map that all heads read: (B, decoder_channels, h, w).

        Args:
            image: (B, 3, H, W) uint8, RGB.
        """
        return self.neck(self.encoder(self.encoder.normalise(image)))

    def forward(self, image: Tensor, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        shared = self.shared_map(image)
        return Outputs({task: self.heads[task](shared) for task in tasks}, shared)

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the neck's last block."""
        return [p for p in self.neck.mix.parameters() if p.requires_grad]

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's head."""
        return [self.heads[task]]


def build_dense(tasks: Mapping[str, Task], model: Mapping[str, Any]) -> DenseNetwork:
    """Builds the network from a suite's ``model`` section.

    Args:
        tasks: Tasks by name.
        model: Keyword arguments of `DenseNetwork` other than ``tasks``.

    Raises:
        SuiteError: See `build_encoder`.
    """
    return DenseNetwork(tasks, **model)
