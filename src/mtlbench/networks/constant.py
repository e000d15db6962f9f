"""A network that does not look at its inputs: one fixed prediction per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.named import NamedModules
from mtlbench.tasks import Task
from mtlbench.tasks.inputs import leaves


class Constant(nn.Module):
    """The same prediction for every sample.

    Args:
        shape: `Task.form`.
    """

    def __init__(self, *shape: int):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape))

    def forward(self, inputs: Any) -> Tensor:
        """Returns (B, *shape) for the inputs of B samples."""
        # `shape[0]`, because `len` would fix the number of samples in an exported program.
        return self.value.expand(leaves(inputs)[0].shape[0], *self.value.shape).clone()


class ConstantNetwork(MTLNetwork):
    """One fixed prediction per task. It is all parameters, so that it is stored, loaded and distributed as any network.

    Args:
        tasks: Tasks by name.
        image_size: Height and width of the predictions of dense tasks; zeros if there are none.
    """

    fitted: Tensor

    def __init__(self, tasks: Mapping[str, Task], image_size: Sequence[int]):
        super().__init__()
        self.constants = NamedModules({name: Constant(*task.form(*image_size)) for name, task in tasks.items()})
        self.register_buffer("fitted", torch.tensor(False))

    def forward(self, inputs: Any, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        return Outputs({task: self.constants[task](inputs) for task in tasks})

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the module of the task's prediction."""
        return [self.constants[task]]

    @torch.no_grad()
    def settle(self, predictions: Mapping[str, Tensor]) -> None:
        """Takes the prediction of every task, of the shape `Task.form`."""
        for task, prediction in predictions.items():
            cast(Constant, self.constants[task]).value.copy_(prediction)
        self.fitted.fill_(True)
