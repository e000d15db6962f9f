"""A shared network that runs once per task, under the cue of that task, or once for all tasks without cues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.networks.base import Outputs
from mtlbench.networks.blocks import per_task
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.encoder_stages import Stages, State
from mtlbench.tasks import Task


class Cue(nn.Module):
    """(1 + γ) ⊙ x + β, with γ and β per channel; the identity at first."""

    def __init__(self, channels: int) -> None:
        """Builds the layer.

        Args:
            channels: Channels of the map.
        """
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, channels, h, w)."""
        return (1 + self.gamma)[:, None, None] * x + self.beta[:, None, None]


class CuedNetwork(DenseNetwork):
    """`DenseNetwork` with two regimes that share all weights but the cues.

    In the serial regime every task has a forward pass of its own, with its `Cue` after each stage of the encoder. In
    the parallel regime one pass without cues serves all tasks. The first stage does not depend on cues and runs once.

    Attributes:
        is_serial: The regime, on the device; it is stored with the weights.
    """

    is_serial: Tensor

    def __init__(self, tasks: Mapping[str, Task], **model: Any) -> None:
        """Builds the network, in the parallel regime.

        Args:
            tasks: Tasks by name.
            model: Arguments of `DenseNetwork`.

        Raises:
            SuiteError: The encoder cannot be built, or cannot run stage by stage.
        """
        super().__init__(tasks, **model)
        self.stages = Stages(self.encoder)
        channels = self.encoder.channels
        self.cues = per_task("cue", tasks, lambda _: nn.ModuleList(Cue(c) for c in channels))
        self.register_buffer("is_serial", torch.zeros((), dtype=torch.bool))
        # A forward pass must not wait for the device, so it reads a copy on the host.
        self.serial = False
        self.register_load_state_dict_post_hook(lambda module, _: module.use(serial=bool(module.is_serial)))

    def use(self, *, serial: bool) -> None:
        """Sets the regime."""
        self.serial = serial
        self.is_serial.fill_(serial)

    def forward(self, inputs: Any, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks in the present regime; see `MTLNetwork.forward`."""
        first = self.stages.run(0, self.stages.start(self.encoder.normalise(inputs)))
        if self.serial:
            return Outputs({task: self.heads[task](self._features(first, self.cues[task])) for task in tasks})
        shared = self._features(first, None)
        predictions = {task: self.heads[task](shared) for task in tasks}
        if self.training:
            # Ranks wait for the gradient of every parameter, that of idle cues too.
            idle = {task: sum(0.0 * p.sum() for p in self.cues[task].parameters()) for task in tasks}
            predictions = {task: prediction + idle[task] for task, prediction in predictions.items()}
        return Outputs(predictions, shared)

    def _features(self, state: State, cues: Any) -> Tensor:
        """Returns what a head reads, from the state after the first stage."""
        maps = []
        for stage in range(len(self.stages)):
            if stage:
                state = self.stages.run(stage, state)
            if cues is not None:
                state = state.with_map(cues[stage](state.map))
            maps.append(state.map)
        return self.neck(maps)

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's head and cues."""
        return [*super().task_modules(task), self.cues[task]]
