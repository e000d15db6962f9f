"""ASTMT: a shared network that runs once per task, modulated by that task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtlbench.networks.base import Outputs
from mtlbench.networks.blocks import SqueezeExcite, per_task
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.encoder_stages import Stages
from mtlbench.tasks import Task


class Modulation(nn.Module):
    """2 · gate(y) ⊙ y with y = x + A x: a residual adapter, then squeeze-and-excitation. Initially the identity."""

    def __init__(self, channels: int, reduction: int) -> None:
        """Builds the layer.

        Args:
            channels: Channels of the map.
            reduction: See `SqueezeExcite`.
        """
        super().__init__()
        self.adapter = nn.Conv2d(channels, channels, 1, bias=False)
        self.excite = SqueezeExcite(channels, reduction)
        last: Any = self.excite.gate[2]
        for parameter in (self.adapter.weight, last.weight, last.bias):  # A = 0 and a gate of one half
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the modulated map (B, channels, h, w)."""
        return 2 * self.excite(x + self.adapter(x))


class ASTMTNetwork(DenseNetwork):
    """`DenseNetwork` run once per task, with a `Modulation` of the task after each stage of the encoder and the neck.

    The first stage does not depend on the task and runs once.
    """

    def __init__(
        self, tasks: Mapping[str, Task], *, reduction: int = 16, decoder_channels: int = 64, **model: Any
    ) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            reduction: Channels over hidden width of the gates.
            decoder_channels: Channels of neck and heads.
            model: Further arguments of `DenseNetwork`.

        Raises:
            SuiteError: The encoder cannot be built, or cannot run stage by stage.
        """
        super().__init__(tasks, decoder_channels=decoder_channels, **model)
        self.stages = Stages(self.encoder)
        channels = [*self.encoder.channels, decoder_channels]
        self.modulations = per_task(
            "modulation", tasks, lambda _: nn.ModuleList(Modulation(c, reduction) for c in channels)
        )

    def forward(self, image: Tensor, tasks: Sequence[str]) -> Outputs:
        """Predicts each named task in a separate forward pass; see `MTLNetwork.forward`."""
        first = self.stages.run(0, self.stages.start(self.encoder.normalise(image)))
        predictions = {}
        for task in tasks:
            *modulations, last = self._of(task)
            state = first.with_map(modulations[0](first.map))
            maps = [state.map]
            for i in range(1, len(self.stages)):
                state = self.stages.run(i, state)
                state = state.with_map(modulations[i](state.map))
                maps.append(state.map)
            predictions[task] = self.heads[task](last(self.neck(maps)))
        return Outputs(predictions)

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's head and modulations."""
        return [*super().task_modules(task), self.modulations[task]]

    def _of(self, task: str) -> Any:
        return self.modulations[task]
