"""Parallel encoders, one per task: on their own, or exchanging features after each stage."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.dense import build_dense
from mtlbench.networks.encoder_stages import Stages
from mtlbench.networks.named import NamedModules
from mtlbench.tasks import Task

UnitFactory = Callable[[int, int, int], nn.Module]
"""Builds a fusion unit from the channels C of a map, the number of tasks T, and the index of the unit's task.

The unit takes the T maps (B, C, h, w) of a stage and returns the next map of its task's column.
"""


class SeparateColumns(MTLNetwork):
    """An encoder, neck and head for each task; a column runs only if its task is requested. Subclasses build them."""

    # The entries are used as encoders and necks. mypy would treat them as plain modules.
    encoders: Any
    necks: Any
    heads: nn.ModuleDict

    def forward(self, image: Tensor, tasks: Sequence[str]) -> Outputs:
        """Predicts each named task in a separate pass; see `MTLNetwork.forward`."""
        found = {}
        for task in tasks:
            encoder = self.encoders[task]
            found[task] = self.heads[task](self.necks[task](encoder(encoder.normalise(image))))
        return Outputs(found)

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's head, encoder and neck: no pass reaches the column of another task."""
        return [self.heads[task], self.encoders[task], self.necks[task]]


class ColumnNetwork(MTLNetwork):
    """T single-task networks (columns) whose maps pass through fusion units after each stage of the encoder.

    All columns start from the weights of the single-task network of the same seed and differ only in their heads. Every
    column runs, even if a single task is requested.

    Attributes:
        units: The unit of each task, for each stage.
    """

    # Encoders and necks are indexed by task, units by stage and task. mypy would treat the entries as plain modules.
    encoders: Any
    necks: Any
    units: Any

    def __init__(self, tasks: Mapping[str, Task], unit: UnitFactory, **model: Any) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            unit: Builds a fusion unit.
            model: Arguments of `DenseNetwork`.

        Raises:
            SuiteError: The encoder cannot be run by stages (see `Stages`) or cannot be built.
        """
        super().__init__()
        single = build_dense(tasks, model)
        self.names = list(tasks)
        self.encoders = NamedModules({task: copy.deepcopy(single.encoder) for task in tasks})
        self.necks = NamedModules({task: copy.deepcopy(single.neck) for task in tasks})
        self.heads = single.heads
        self.stages = {task: Stages(self.encoders[task]) for task in tasks}
        self.units = nn.ModuleList(
            NamedModules({task: unit(channels, len(tasks), i) for i, task in enumerate(tasks)})
            for channels in single.encoder.channels
        )

    def forward(self, image: Tensor, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        normalised = self.encoders[self.names[0]].normalise(image)
        states = {task: stages.start(normalised) for task, stages in self.stages.items()}
        found: dict[str, list[Tensor]] = {task: [] for task in self.names}
        for i, units in enumerate(self.units):
            states = {task: self.stages[task].run(i, state) for task, state in states.items()}
            maps = [state.map for state in states.values()]
            # After the last stage a map reaches only its own task, so the units of other columns are skipped.
            going = self.names if i < len(self.units) - 1 else tasks
            states = {task: states[task].with_map(units[task](maps)) for task in going}
            for task, state in states.items():
                found[task].append(state.map)
        return Outputs({task: self.heads[task](self.necks[task](found[task])) for task in tasks})

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the last block of every column."""
        blocks = [stages.blocks[-1][-1] for stages in self.stages.values()]
        return [p for block in blocks for p in block.parameters() if p.requires_grad]

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's head, neck and last fusion unit. All other modules reach other columns."""
        return [self.heads[task], self.necks[task], self.units[-1][task]]
