"""A vision transformer with task-aware sparse experts in place of some of its MLPs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.errors import MethodError, SuiteError
from mtlbench.networks.base import Outputs
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.experts import ExpertMlp, TaskRouter
from mtlbench.tasks import Task


@dataclass
class _Pass:
    """One forward pass of one task: what the routers read, and what they leave behind."""

    task: str
    statistics: list[dict[str, Tensor]] = field(default_factory=list)


@dataclass
class TaskContext:
    """Tells the sparse layers of one network which task is running; passes may be nested."""

    passes: list[_Pass] = field(default_factory=list)

    @contextmanager
    def running(self, task: str) -> Iterator[list[dict[str, Tensor]]]:
        """Names the task of the forward pass inside, and gives the list that its layers add statistics to."""
        self.passes.append(_Pass(task))
        try:
            yield self.passes[-1].statistics
        finally:
            self.passes.pop()

    def current(self) -> _Pass:
        """Returns the innermost pass.

        Raises:
            MethodError: No task is running.
        """
        if not self.passes:
            raise MethodError("Experts need to know the task. Call the network, not its encoder.")
        return self.passes[-1]


class SparseMlp(nn.Module):
    """A router and its experts, in the place of a transformer block's MLP."""

    def __init__(self, context: TaskContext, router: TaskRouter, experts: ExpertMlp) -> None:
        """Builds the layer.

        Args:
            context: Of the network that holds the layer.
            router: Chooses experts.
            experts: Of the same width.
        """
        super().__init__()
        self.context = context
        self.router = router
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        """Returns the experts' output, (..., D) as ``x``."""
        running = self.context.current()
        tokens = x.flatten(0, -2)  # (N, D)
        routing = self.router(tokens, running.task)
        running.statistics.append(routing.statistics())
        return self.experts(tokens, routing).view_as(x)


class TaskMoENetwork(DenseNetwork):
    """`DenseNetwork` with sparse layers in its transformer, run once per task.

    An expert's hidden width is the dense MLP's divided by k, rounded down, so a token costs what it costs in the
    dense network, plus the router's N · D · E multiplications.

    `Outputs.statistics["router"]` holds, per sparse layer, ``probability`` (T, E), the mean over tokens of P(E | t)
    with gradient, and ``load`` (T, E), the share of choices; rows are in the order of the tasks asked for.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        experts: int = 8,
        top_k: int = 2,
        gate: str = "token_task",
        placement: str | Sequence[int] = "alternate",
        **model: Any,
    ) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            experts: Experts per sparse layer, E.
            top_k: Experts per token, k in 1..E.
            gate: What routing depends on; see `TaskRouter`.
            placement: Blocks that get experts: ``"every"``, ``"alternate"`` (the 2nd, 4th, ...) or their indices.
            model: Arguments of `DenseNetwork`.

        Raises:
            SuiteError: The encoder is no transformer with an MLP in these blocks, or cannot be built.
            MethodError: A value is outside its range.
        """
        super().__init__(tasks, **model)
        self.context = TaskContext()
        blocks = _blocks(self.encoder.trunk)
        for index in _indices(placement, len(blocks)):
            width, hidden = _mlp_size(blocks[index].mlp)
            router = TaskRouter(width, experts, top_k, gate, list(tasks))
            blocks[index].mlp = SparseMlp(self.context, router, ExpertMlp(width, max(1, hidden // top_k), experts))
        self.routers = [m for m in self.modules() if isinstance(m, TaskRouter)]

    def forward(self, image: Tensor, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks, each by a forward pass of its own; see `MTLNetwork.forward`."""
        predictions, passes = {}, []
        for task in tasks:
            with self.context.running(task) as statistics:
                predictions[task] = self.heads[task](self.shared_map(image))
            passes.append(statistics)
        layers = [
            {key: torch.stack([row[key] for row in rows]) for key in ("probability", "load")}
            for rows in zip(*passes, strict=True)
        ]
        return Outputs(predictions, statistics={"router": layers})

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's head, and what it owns of every router."""
        return [*super().task_modules(task), *(module for router in self.routers for module in router.owned(task))]


def _blocks(trunk: nn.Module) -> Any:
    blocks = getattr(getattr(trunk, "model", None), "blocks", None)
    if blocks is None or not all(hasattr(block, "mlp") for block in blocks):
        raise SuiteError(
            "Experts replace the MLPs of a vision transformer's blocks; this encoder has none. "
            "Choose `model.encoder` accordingly, for example 'vit_tiny_patch16_224'."
        )
    return blocks


def _indices(placement: str | Sequence[int], depth: int) -> list[int]:
    named = {"every": range(depth), "alternate": range(1, depth, 2)}
    if isinstance(placement, str) and placement not in named:
        raise MethodError(f"placement must be 'every', 'alternate' or a list of block indices; found {placement!r}.")
    indices = list(named[placement] if isinstance(placement, str) else placement)
    if not indices or len(set(indices)) < len(indices) or not all(0 <= i < depth for i in indices):
        raise MethodError(
            f"placement must choose at least one of the encoder's {depth} blocks (0..{depth - 1}), each once; "
            f"{placement!r} chooses {indices}."
        )
    return indices


def _mlp_size(mlp: nn.Module) -> tuple[int, int]:
    """Returns the width D and the hidden width of the two-layer MLP with as many weights."""
    layers = [m for m in mlp.modules() if isinstance(m, nn.Linear)]
    if not layers or layers[0].in_features != layers[-1].out_features:
        raise SuiteError(
            f"Experts replace an MLP of linear layers; found {type(mlp).__name__}. Choose another encoder."
        )
    width = layers[0].in_features
    return width, sum(layer.weight.numel() for layer in layers) // (2 * width)
