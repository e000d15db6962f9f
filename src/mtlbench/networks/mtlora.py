"""MTLoRA: a frozen transformer with shared and task-specific low-rank updates."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from timm.models.swin_transformer import SwinTransformerStage
from torch import Tensor, nn

from mtlbench.errors import SuiteError
from mtlbench.networks.base import Outputs
from mtlbench.networks.blocks import per_task
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.encoder_stages import Stages
from mtlbench.tasks import Task


class LowRank(nn.Module):
    """The low-rank update scale · B A dropout(x), with B initially zero."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float, dropout: float) -> None:
        """Builds the two matrices.

        Args:
            inputs: Input channels.
            outputs: Output channels.
            rank: Rows of A, capped at ``inputs`` and ``outputs``. A larger rank would add nothing.
            scale: Factor on the product.
            dropout: Share of inputs that are dropped in training.
        """
        super().__init__()
        rank = min(rank, inputs, outputs)
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(inputs, rank, bias=False)  # A
        self.up = nn.Linear(rank, outputs, bias=False)  # B
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., outputs)."""
        return self.scale * self.up(self.down(self.dropout(x)))


class LoRALinear(nn.Module):
    """A frozen linear layer plus a shared low-rank update and that of the running task, if there is one.

    Attributes:
        running: Task of the forward pass, or None for the stream that all tasks share.
    """

    def __init__(self, base: nn.Linear, shared: LowRank, own: nn.ModuleDict) -> None:
        """Wraps a layer.

        Args:
            base: The layer W with its bias.
            shared: Update for every stream.
            own: Updates by task; empty in blocks that run only once for all tasks.
        """
        super().__init__()
        self.base, self.shared, self.own = base, shared, own
        self.running: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., outputs)."""
        y = self.base(x) + self.shared(x)
        return y if self.running is None or self.running not in self.own else y + self.own[self.running](x)

    @property
    def weight(self) -> Tensor:
        """Not available, because a block that uses the weight directly would bypass the updates.

        Raises:
            SuiteError: Always.
        """
        raise SuiteError(
            "MTLoRA changes the outputs of linear layers, but this encoder reads their weights instead. Choose "
            "`model.encoder` among vit_*, deit_* and swin_*."
        )


class MTLoRANetwork(DenseNetwork):
    """`DenseNetwork` on a frozen encoder whose linear layers have low-rank updates.

    The last block of every stage runs once for each task, with the updates of the task, to produce the task's map. It
    runs once more without them for the next stage. All other blocks run once.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        rank: int = 64,
        task_rank: int = 4,
        scale: float = 4.0,
        dropout: float = 0.0,
        **model: Any,
    ) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            rank: Rank of the shared updates.
            task_rank: Rank of a task's updates.
            scale: Factor on both.
            dropout: Dropout on the input of both.
            model: Arguments of `DenseNetwork`.

        Raises:
            SuiteError: The encoder is not a transformer that runs stage by stage.
        """
        super().__init__(tasks, **model)
        self.encoder.requires_grad_(False)
        self.stages = Stages(self.encoder)
        self.stages.blocks = [[part for block in blocks for part in _parts(block)] for blocks in self.stages.blocks]

        def change(layer: nn.Linear, r: int, _: str = "") -> LowRank:
            return LowRank(layer.in_features, layer.out_features, r, scale, dropout)

        for i, blocks in enumerate(self.stages.blocks):
            for k, block in enumerate(blocks):
                # Only the last block of a stage runs per task.
                owners = list(tasks) if k == len(blocks) - 1 else []
                for name, layer in _linear_layers(block, needed=bool(owners)):
                    own = per_task(f"lora {i} {k} {name}", owners, functools.partial(change, layer, task_rank))
                    block.set_submodule(name, LoRALinear(layer, change(layer, rank), own))
        self.layers = [module for module in self.encoder.modules() if isinstance(module, LoRALinear)]

    def forward(self, image: Tensor, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        state = self.stages.start(self.encoder.normalise(image))
        maps: dict[str, list[Tensor]] = {task: [] for task in tasks}
        for i in range(len(self.stages)):
            state = self.stages.run(i, state, slice(None, -1))
            for task in tasks:
                with self._running(task):
                    maps[task].append(self.stages.run(i, state, slice(-1, None)).map)
            if i + 1 < len(self.stages):
                state = self.stages.run(i, state, slice(-1, None))
        return Outputs({task: self.heads[task](self.neck(maps[task])) for task in tasks})

    def encoder_blocks(self) -> list[nn.Module]:
        """Returns the blocks that run once for all tasks. The others depend on which task is running."""
        return [block for blocks in self.stages.blocks for block in blocks[:-1]]

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's head and low-rank updates."""
        return [*super().task_modules(task), *(layer.own[task] for layer in self.layers if task in layer.own)]

    @contextmanager
    def _running(self, task: str) -> Iterator[None]:
        for layer in self.layers:
            layer.running = task
        try:
            yield
        finally:
            for layer in self.layers:
                layer.running = None


def _parts(block: nn.Module) -> list[nn.Module]:
    """Splits a Swin stage into its blocks, so that the last one can run separately; returns other blocks unchanged."""
    return [block.downsample, *block.blocks] if isinstance(block, SwinTransformerStage) else [block]


def _linear_layers(block: nn.Module, *, needed: bool) -> list[tuple[str, nn.Linear]]:
    found = [(name, module) for name, module in block.named_modules() if type(module) is nn.Linear]
    if needed and not found:
        raise SuiteError(
            f"MTLoRA changes the linear layers of transformer blocks. {type(block).__name__} of this encoder has none. "
            "Choose `model.encoder` among vit_*, deit_* and swin_*."
        )
    return found
