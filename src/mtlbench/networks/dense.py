"""The plain multi-task network: one shared encoder and neck, one head per task (hard parameter sharing)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.families import family_of
from mtlbench.networks.family import Model
from mtlbench.tasks import Task


class DenseNetwork(MTLNetwork):
    """A shared encoder and neck with one head per task. The encoder runs once, whatever the number of tasks."""

    def __init__(self, tasks: Mapping[str, Task], **model: Any) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            model: The keys of a suite's ``model`` section; see `Model`.

        Raises:
            SuiteError: See `Family.parts`.
        """
        super().__init__()
        described = Model(**model)
        self.family = family_of(described.encoder)
        parts = self.family.parts(tasks, described)
        self.encoder, self.neck, self.heads = parts.encoder, parts.neck, parts.heads

    def shared_map(self, inputs: Any) -> Tensor:
        """Returns what all heads read: a map (B, decoder_channels, h, w), or vectors (B, decoder_channels).

        Args:
            inputs: As the encoder's family takes them.
        """
        return self.neck(self.encoder(self.encoder.normalise(inputs)))

    def forward(self, inputs: Any, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        shared = self.shared_map(inputs)
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
        SuiteError: See `Family.parts`.
    """
    return DenseNetwork(tasks, **model)
