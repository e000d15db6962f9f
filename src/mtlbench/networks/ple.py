"""PLE (progressive layered extraction): several levels of shared and private experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.errors import MethodError
from mtlbench.networks.base import Outputs
from mtlbench.networks.blocks import per_task
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.mmoe import SoftmaxGate, mix
from mtlbench.tasks import Task


class Extraction(nn.Module):
    """One level, with a gate per task over shared and own experts and, except in the last level, one over all."""

    # Indexed by task. mypy would treat the entries as plain modules.
    private: Any
    gates: Any

    def __init__(
        self,
        level: int,
        tasks: Sequence[str],
        width: int,
        block: Callable[[int], nn.Module],
        shared: int,
        private: int,
        *,
        last: bool,
    ) -> None:
        """Builds the level.

        Args:
            level: Index of the level, which enters the seeds of the modules that tasks own.
            tasks: Names of all T tasks.
            width: Channels of all maps.
            block: Builds an expert of a width.
            shared: Number of shared experts.
            private: Number of experts of each task.
            last: Whether this is the last level, which needs no common map.
        """
        super().__init__()

        def experts(count: int) -> nn.ModuleList:
            return nn.ModuleList(block(width) for _ in range(count))

        self.shared = experts(shared)
        self.shared_gate = None if last else SoftmaxGate(width, shared + len(tasks) * private)
        self.private = per_task(f"private {level}", tasks, lambda _: experts(private))
        self.gates = per_task(f"gate {level}", tasks, lambda _: SoftmaxGate(width, shared + private))

    def forward(
        self, common: Tensor, own: Mapping[str, Tensor], tasks: Sequence[str]
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Returns the next common map (None in the last level) and the next map of each task, (B, C, h, w) each.

        Args:
            common: Common map.
            own: Map of each task.
            tasks: Tasks whose maps are needed: all of them except in the last level.
        """
        shared = [expert(common) for expert in self.shared]
        private = {task: [expert(own[task]) for expert in self.private[task]] for task in tasks}
        mixed = {task: mix(self.gates[task](own[task]), torch.stack([*shared, *private[task]], 1)) for task in tasks}
        if self.shared_gate is None:
            return None, mixed
        every = torch.stack([*shared, *(x for task in tasks for x in private[task])], 1)
        return mix(self.shared_gate(common), every), mixed


class PLENetwork(DenseNetwork):
    """`DenseNetwork` with levels of experts between neck and heads."""

    # Modules of type `Extraction`.
    levels: Any

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        levels: int = 2,
        shared: int = 1,
        private: int = 1,
        decoder_channels: int = 64,
        **model: Any,
    ) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            levels: Number of levels >= 1; one level is CGC.
            shared: Shared experts per level, >= 1.
            private: Experts per task and level, >= 0.
            decoder_channels: Channels of neck, experts and heads.
            model: Further arguments of `DenseNetwork`.

        Raises:
            SuiteError: See `build_encoder`.
            MethodError: A value is outside its range.
        """
        super().__init__(tasks, decoder_channels=decoder_channels, **model)
        if not (levels >= 1 and shared >= 1 and private >= 0):
            raise MethodError(
                "levels and shared must be at least 1, and private at least 0. "
                f"Found levels={levels}, shared={shared}, private={private}. Correct the values that are too small."
            )
        self.names, self.has_private = list(tasks), private > 0
        self.levels = nn.ModuleList(
            Extraction(i, self.names, decoder_channels, self.family.block, shared, private, last=i == levels - 1)
            for i in range(levels)
        )

    def forward(self, inputs: Any, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        common = self.shared_map(inputs)
        own = dict.fromkeys(self.names, common)
        for level in self.levels[:-1]:
            common, own = level(common, own, self.names)
        _, own = self.levels[-1](common, own, tasks)
        return Outputs({task: self.heads[task](own[task]) for task in tasks})

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the last level's shared experts."""
        return list(self.levels[-1].shared.parameters())

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's head, its experts in the last level, and the gates that no other task reaches.

        A gate's mixture feeds the task's experts of the next level, and all experts except those of the last level
        affect the common map, so earlier gates reach other tasks if there are private experts.
        """
        gated = self.levels[-2:] if self.has_private else self.levels
        return [self.heads[task], self.levels[-1].private[task], *(level.gates[task] for level in gated)]
