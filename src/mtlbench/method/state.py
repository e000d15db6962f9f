"""What one micro-batch leaves for the callbacks that Lightning calls after ``training_step``."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from mtlbench.balancing.base import Context
from mtlbench.balancing.gradients.diagnostics import Snapshot
from mtlbench.balancing.gradients.surgery import Collected
from mtlbench.balancing.losses import ReducedLosses
from mtlbench.data import Batch


@dataclass
class StepState:
    """The state of one micro-batch. ``training_step`` creates it, and the next ``training_step`` replaces it.

    Attributes:
        batch: The micro-batch.
        micro_index: Its index within the optimiser step.
        step: Number of the optimiser step, from 0.
        representation: The shared representation on this rank, one tensor per stream.
        losses: Losses of this micro-batch over all ranks.
        whole: Losses of all micro-batches of the optimiser step so far.
        ctx: Context of this micro-batch.
        rows: Weighted loss share of each active task, by task index.
        extra: Sum of regularisers and of the balancer's own loss.
        total: What Lightning back-propagates.
        collected: Gradients of all micro-batches of the optimiser step so far, where a rule waits for all of them.
        seen: The update as it was seen within the backward pass.
        overflow: Whether a collected fp16 gradient is not finite on some rank, 1. or 0.
        stepped: Whether the optimiser has stepped since.
    """

    batch: Batch = field(default_factory=Batch)
    micro_index: int = 0
    step: int = 0
    representation: list[Tensor] = field(default_factory=list)
    losses: ReducedLosses | None = None
    whole: ReducedLosses | None = None
    ctx: Context | None = None
    rows: dict[int, Tensor] = field(default_factory=dict)
    extra: Tensor | None = None
    total: Tensor | None = None
    collected: Collected | None = None
    seen: Snapshot | None = None
    overflow: Tensor | None = None
    stepped: bool = False

    def following(self, batch: Batch, micro_index: int, step: int) -> StepState:
        """Returns the state of the next micro-batch, which goes on with this one's optimiser step if it is not over."""
        self.ctx = None  # Its look-ahead refers to this state: together they would live until garbage is collected.
        if self.stepped:
            return StepState(batch, micro_index, step)
        return StepState(batch, micro_index, step, whole=self.whole, collected=self.collected)

    def release(self) -> None:
        """Drops the graph: it must not outlive the backward pass."""
        self.rows, self.extra, self.total, self.representation = {}, None, None, []
