"""The network of a task that shares computation with a base task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from mtlbench.errors import MethodError
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.sharing.gates import SparseDeltas
from mtlbench.networks.sharing.referenced_vit import ReferencedViT, Threshold, Trace
from mtlbench.tasks import Task


class SharingNetwork(DenseNetwork):
    """`DenseNetwork` whose encoder is that of a base task plus sparse changes.

    In evaluation its activations are held to those of the base on the same image. In training they are free.

    Attributes:
        encoder: Encoder with the frozen weights of the base.
        deltas: Sparse changes of all tensors of the encoder.
        threshold: Threshold θ of evaluation.
    """

    encoder: Any

    def __init__(self, tasks: Mapping[str, Task], *, threshold: Threshold = 0.15, **model: Any) -> None:
        """Builds the network, whose base is a new encoder until `take` is called.

        Args:
            tasks: Tasks by name.
            threshold: Threshold θ of evaluation; see `referenced_vit.held`.
            model: Arguments of `DenseNetwork`.

        Raises:
            SuiteError: The encoder is not a plain vision transformer.
        """
        super().__init__(tasks, **model)
        self.threshold = threshold
        self.encoder = ReferencedViT(self.encoder)
        trained = {name: p for name, p in self.encoder.named_parameters() if p.requires_grad}
        self.encoder.requires_grad_(False)
        self.deltas = SparseDeltas(trained)

    def take(self, base: MTLNetwork) -> None:
        """Copies the encoder of the base task's network.

        Raises:
            MethodError: The network has no encoder or a different one.
        """
        # Names and shapes are compared, because the base may belong to another class of network.
        encoder = getattr(base, "encoder", None)
        found = encoder.state_dict() if encoder is not None else {}
        own = self.encoder.encoder.state_dict()
        if found.keys() != own.keys() or any(found[name].shape != value.shape for name, value in own.items()):
            raise MethodError(
                "A sub-task shares every tensor of the base task's encoder. The base run's network, "
                f"{type(base).__name__}, has another encoder. Train both with the same `model` section."
            )
        self.encoder.encoder.load_state_dict(found)

    @torch.no_grad()
    def base(self, image: Tensor) -> Trace:
        """Runs the base task's encoder and returns its trace.

        Args:
            image: (B, 3, H, W) uint8, RGB.
        """
        return self.encoder(image)

    def weights(self) -> dict[str, Tensor]:
        """Returns the changed weights of the encoder by name."""
        return self.deltas(dict(self.encoder.named_parameters()))

    def trace(
        self, image: Tensor, weights: Mapping[str, Tensor], base: Trace | None = None, threshold: Threshold = 0.0
    ) -> Trace:
        """Runs the changed encoder and returns its trace.

        Args:
            image: (B, 3, H, W) uint8, RGB.
            weights: Result of `weights`.
            base: Trace to which activations are held; None leaves them free.
            threshold: Threshold θ.
        """
        references = base.activations if base is not None else {}
        return functional_call(self.encoder, dict(weights), (image, references, threshold))

    def decode(self, maps: Sequence[Tensor], tasks: Sequence[str]) -> Outputs:
        """Returns predictions from the feature maps (B, D, h, w) of a pass."""
        shared = self.neck(maps)
        return Outputs({task: self.heads[task](shared) for task in tasks}, shared)

    def forward(self, image: Tensor, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks. In training the statistics hold the trace of the pass as ``trace``."""
        held = None if self.training else self.base(image)
        trace = self.trace(image, self.weights(), held, self.threshold)
        outputs = self.decode(trace.maps, tasks)
        outputs.statistics = {"trace": trace} if self.training else {}
        return outputs


def activation_distance(trace: Trace, base: Trace) -> Tensor:
    """Returns the mean absolute difference of two passes over all entries of all computed places, ().

    Args:
        trace: Trace of the sub-task, possibly with a gradient.
        base: Trace of the base task.
    """
    # The pixels are the same in both passes and are not computed by the encoder.
    pairs = [(value, base.activations[place]) for place, value in trace.activations.items() if place != "pixels"]
    total = torch.stack([(value - reference).abs().float().sum() for value, reference in pairs]).sum()
    return total / sum(value.numel() for value, _ in pairs)
