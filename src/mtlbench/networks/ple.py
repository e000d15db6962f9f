"""PLE (progressive layered extraction): levels of shared and private experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.errors import MethodError
from mtlbench.networks.base import Outputs
from mtlbench.networks.blocks import per_task
from mtlbench.networks.decoder import ConvBlock
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.mmoe import SoftmaxGate, mix
from mtlbench.tasks import Task


class Extraction(nn.Module):
    """One level: a gate per task over shared and own experts and, except in the last level, one over all experts."""

    # By task; mypy takes what a ModuleDict holds for plain modules.
    private: Any
    gates: Any

    def __init__(self, level: int, tasks: Sequence[str], width: int, shared: int, private: int, *, last: bool) -> None:
        """Builds the level.

        Args:
            level: Index of the level, for the seeds of modules that tasks own.
            tasks: Names of all tasks, T.
            width: Channels of all maps.
            shared: Shared experts.
            private: Experts of each task.
            last: Whether this is the last level, which needs no common map.
        """
        super().__init__()

        def experts(count: int) -> nn.ModuleList:
            return nn.ModuleList(ConvBlock(width, width) for _ in range(count))

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
            tasks: Tasks whose maps are needed: all of them unless this is the last level.
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

    # Of `Extraction`.
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
            levels: Levels >= 1; 1 is CGC.
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
                "levels and shared must be at least 1, and private at least 0; "
                f"found levels={levels}, shared={shared}, private={private}."
            )
        self.names, self.has_private = list(tasks), private > 0
        self.levels = nn.ModuleList(
            Extraction(i, self.names, decoder_channels, shared, private, last=i == levels - 1) for i in range(levels)
        )

    def forward(self, image: Tensor, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        common = self.shared_map(image)
        own = dict.fromkeys(self.names, common)
        for level in self.levels[:-1]:
            common, own = level(common, own, self.names)
        _, own = self.levels[-1](common, own, tasks)
        return Outputs({task: self.heads[task](own[task]) for task in tasks})

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the last level's shared experts."""
        return list(self.levels[-1].shared.parameters())

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's head, its experts of the last level, and the gates that no other task reaches.

        A gate's mixture feeds the task's experts of the next level, and all experts except those of the last level
        reach the common map.
        """
        gated = self.levels[-2:] if self.has_private else self.levels
        return [self.heads[task], self.levels[-1].private[task], *(level.gates[task] for level in gated)]
