"""Feature exchange: decoders on one shared encoder in which dense tasks refine each other's features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtlbench.errors import MethodError, SuiteError
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.blocks import conv, per_task
from mtlbench.networks.decoder import build_heads
from mtlbench.networks.encoder import Encoder, build_encoder
from mtlbench.networks.named import NamedModules
from mtlbench.tasks import Task


class ExchangeDecoder(nn.Module, ABC):
    """Base of decoders from encoder maps to dense predictions in which tasks read each other's features."""

    @abstractmethod
    def forward(
        self, maps: Sequence[Tensor], tasks: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
        """Predicts the named tasks from the features of all tasks.

        Args:
            maps: Maps of the encoder, finest first.
            tasks: Names of the tasks to predict.

        Returns:
            Final predictions (B, channels, H, W) by task, and intermediate predictions by task (none in evaluation).
        """

    @abstractmethod
    def owned(self, task: str) -> list[nn.Module]:
        """Returns the modules that only this task reaches in a network of several tasks."""


BuildDecoder = Callable[[Mapping[str, Task], Encoder, int, tuple[int, int]], ExchangeDecoder]
"""Builds a decoder from tasks, encoder, width in channels, and the height and width of images."""


class ExchangeNetwork(MTLNetwork):
    """One encoder with an `ExchangeDecoder` for dense tasks and linear heads for whole-image tasks.

    The heads of whole-image tasks read the means of the encoder's maps. These tasks take no part in the exchange.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        build: BuildDecoder,
        *,
        auxiliary: float = 1.0,
        image_size: Sequence[int],
        encoder: str = "resnet18",
        encoder_options: Mapping[str, Any] | None = None,
        weights: str | None = None,
        decoder_channels: int = 64,
        upsampling: str = "bilinear",
    ) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            build: Builds the decoder.
            auxiliary: Weight of each intermediate prediction in the loss of its task, >= 0.
            image_size: Height and width of images in pixels.
            encoder: timm's name.
            encoder_options: Further arguments of ``timm.create_model``.
            weights: None (random), ``"timm"``, ``"mtlbench:<name>"`` or a path; see `build_encoder`.
            decoder_channels: Channels of a task's features.
            upsampling: Must be ``"bilinear"``.

        Raises:
            SuiteError: See `build_encoder`; or ``upsampling`` is another.
            MethodError: ``auxiliary`` is negative.
        """
        super().__init__()
        if not auxiliary >= 0:
            raise MethodError(f"auxiliary, the weight of intermediate predictions, must be >= 0. Found {auxiliary}.")
        if upsampling != "bilinear":
            raise SuiteError(
                "Decoders that exchange features upsample bilinearly. Found model.upsampling: "
                f"{upsampling}. Add `model: {{upsampling: bilinear}}` to this method's entry."
            )
        height, width = image_size
        size = (height, width)
        self.auxiliary = auxiliary
        self.encoder = build_encoder(encoder, image_size=size, weights=weights, options=encoder_options)
        self.dense = {name: task for name, task in tasks.items() if task.dense}
        whole = {name: task for name, task in tasks.items() if not task.dense}
        self.decoder = build(self.dense, self.encoder, decoder_channels, size) if self.dense else None
        self.image_heads = build_heads(whole, sum(self.encoder.channels), size)

    def forward(self, image: Tensor, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        maps = self.encoder(self.encoder.normalise(image))
        dense = [task for task in tasks if task in self.dense]
        predictions, further = self.decoder(maps, dense) if self.decoder is not None and dense else ({}, {})
        if len(dense) < len(tasks):
            means = torch.cat([m.mean((2, 3), keepdim=True) for m in maps], 1)
            predictions |= {task: self.image_heads[task](means) for task in tasks if task not in self.dense}
        weighted = {task: [(self.auxiliary, p) for p in found] for task, found in further.items()}
        return Outputs({task: predictions[task] for task in tasks}, auxiliary=weighted)

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the modules that only this task reaches, which is the whole decoder for the only dense task."""
        if task in self.image_heads:
            return [self.image_heads[task]]
        decoder = cast(ExchangeDecoder, self.decoder)  # Exists, because the task is dense.
        return [decoder] if len(self.dense) == 1 else decoder.owned(task)


class FeatureExchange(nn.Module):
    """f_i + Σ_{a≠i} σ(W_ia f_a) ⊙ V_ia f_a with 3 x 3 convolutions W and V for each ordered pair of tasks."""

    def __init__(self, label: str, tasks: Sequence[str], channels: int) -> None:
        """Builds the convolutions.

        Args:
            label: Position in the network; see `per_task`.
            tasks: Tasks that exchange features.
            channels: Channels of every task's feature.
        """
        super().__init__()

        def givers(kind: str) -> nn.ModuleDict:
            return NamedModules(
                {
                    i: per_task(f"{label} {kind} {i}", [a for a in tasks if a != i], lambda _: conv(channels, channels))
                    for i in tasks
                }
            )

        self.gates, self.values = givers("gate"), givers("value")

    def forward(self, features: Mapping[str, Tensor], task: str) -> Tensor:
        """Returns the refined feature of one task.

        Args:
            features: (B, channels, h, w) by task.
            task: Task that receives.
        """
        gates: Any = self.gates[task]
        values: Any = self.values[task]
        messages = [gates[a](features[a]).sigmoid() * values[a](features[a]) for a in gates]
        return sum(messages, features[task])

    def owned(self, task: str) -> list[nn.Module]:
        """Returns the convolutions of which this task is the receiver."""
        return [self.gates[task], self.values[task]]
