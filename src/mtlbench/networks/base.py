"""`MTLNetwork`, the base of every network: it predicts tasks and knows which parameters belong to which task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mtlbench.errors import MethodError
from mtlbench.networks.blocks import pooled
from mtlbench.networks.family import InputEncoder
from mtlbench.networks.recompute import blocks_of, recompute_blocks


@dataclass
class Outputs:
    """Result of a forward pass.

    Attributes:
        predictions: Raw prediction per task: (B, channels, H, W) at image size, (B, channels, N) for every token of a
            text, or (B, channels).
        representation: Tensor through which the shared parameters reach all heads, for rules that use its gradient;
            None if there is no single such tensor.
        statistics: Values that a regulariser of the method needs, for example router probabilities.
        auxiliary: Deep supervision: for each task, pairs of a weight and a further prediction of the same shape. Their
            weighted losses are added to the task's loss before balancing. Evaluation ignores them.
    """

    predictions: dict[str, Tensor]
    representation: Tensor | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    auxiliary: dict[str, list[tuple[float, Tensor]]] = field(default_factory=dict)


class MTLNetwork(nn.Module, ABC):
    """Base class of every network.

    A parameter is either shared (two or more tasks reach it) or owned by one task. The two sets are disjoint and cover
    all trainable parameters; `mtlbench.testing.check_network` verifies this by gradients.
    """

    @abstractmethod
    def forward(self, inputs: Any, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks.

        Args:
            inputs: What the data module's batches hold. Images are (B, 3, H, W) uint8, RGB; the network normalises
                them itself, on the device.
            tasks: Names of the tasks to predict.
        """

    @abstractmethod
    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the modules that only this task reaches: its head first, then the modules of its gates."""

    def inherit(self, task: str, related: str) -> None:
        """Initialises a task's gates from another task's: copies everything that task owns except its head.

        Args:
            task: Task whose gates are new.
            related: Task of the same network whose gates are trained.
        """
        # The head comes first in `task_modules`. It is left out, because tasks may differ in output channels.
        for new, known in zip(self.task_modules(task)[1:], self.task_modules(related)[1:], strict=True):
            new.load_state_dict(known.state_dict())

    def sample_features(self, representation: Tensor) -> Tensor:
        """Returns one feature vector (B, C) per sample of `Outputs.representation`. Default: see `pooled`."""
        return pooled(representation)

    @property
    def routers(self) -> Sequence[nn.Module]:
        """Modules that choose the experts of a token; empty in dense networks."""
        return ()

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the last layer that all tasks share; empty if there is no such layer."""
        return []

    def encoder_blocks(self) -> list[nn.Module]:
        """Returns the blocks of the encoders that every forward pass calls as a whole; none within another."""
        return [b for m in self.modules() if isinstance(m, InputEncoder) for b in blocks_of(m)]

    def recompute_encoder(self) -> None:
        """Makes the blocks of the encoders recompute their activations in the backward pass, see `recompute`.

        Raises:
            MethodError: No encoder has blocks that hold most of its parameters.
        """
        blocks, encoders = self.encoder_blocks(), [m for m in self.modules() if isinstance(m, InputEncoder)]
        if not blocks or 2 * _size(*blocks) < _size(*encoders):
            kinds = ", ".join(sorted({type(getattr(e, "trunk", e)).__name__ for e in encoders})) or "none"
            raise MethodError(
                "trainer.gradient_checkpointing needs an encoder made of blocks that hold most of its parameters, each "
                f"of which the network calls as a whole. {type(self).__name__} has another one: {kinds}. Set "
                "trainer.gradient_checkpointing=false, or choose an encoder such as vit_*, swin_*, resnet* or "
                "convnext*."
            )
        recompute_blocks(blocks)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the encoders, which pretrained weights may have set."""
        return [p for module in self.modules() if isinstance(module, InputEncoder) for p in module.parameters()]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Returns the trainable parameters that only this task reaches, in a fixed order."""
        return [p for module in self.task_modules(task) for p in module.parameters() if p.requires_grad]

    def shared_parameters(self, tasks: Sequence[str]) -> list[nn.Parameter]:
        """Returns every other trainable parameter, in a fixed order.

        Args:
            tasks: All tasks of the network.
        """
        owned = {id(p) for task in tasks for p in self.task_parameters(task)}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in owned]


def _size(*modules: nn.Module) -> int:
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())
