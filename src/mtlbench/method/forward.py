"""The losses of a batch on this rank: one forward pass per stream, summed over the valid elements of each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from mtlbench.data import Batch
from mtlbench.data.contract import streams
from mtlbench.errors import MethodError
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.blocks import full_precision
from mtlbench.tasks import Task
from mtlbench.tasks.inputs import extent, inputs_of, leaves

Regularise = Callable[[Outputs, Batch], Mapping[str, Tensor]]
Predict = Callable[[Any, Sequence[str]], Outputs]
"""A network, or what stands for one."""


@dataclass(frozen=True)
class RankLosses:
    """What the forward passes of one batch give on this rank.

    Attributes:
        sums: Loss sum of each task, in task order; auxiliary predictions included.
        regularisers: Further losses by name, added up over streams.
        representation: The shared representation, one tensor per stream that has one.
    """

    sums: list[Tensor]
    regularisers: dict[str, Tensor]
    representation: list[Tensor]


def training_losses(network: MTLNetwork, tasks: Mapping[str, Task], batch: Batch, regularise: Regularise) -> RankLosses:
    """Returns the losses of all tasks, and what ``regularise`` adds to them.

    Raises:
        MethodError: If a task has no target in the batch, not even a blank one, or BatchNorm sees a single value.
    """
    sums: dict[str, Tensor] = {}
    regularisers: dict[str, Tensor] = {}
    representation = []
    for stream in streams(batch):
        names = [name for name in tasks if name in stream["targets"]]
        outputs = _predicted(network, inputs_of(stream), names)
        if outputs.representation is not None:
            representation.append(outputs.representation)
        for name in names:
            sums[name] = _loss(tasks[name], name, outputs, stream["targets"][name])
        for key, value in regularise(outputs, stream).items():
            regularisers[key] = regularisers[key] + value if key in regularisers else value
    idle = [name for name in tasks if name not in sums and name in batch.get("idle", ())]
    if idle:
        # No stream of this step has the task. Its loss of 0 reaches all parameters, so that no rank waits for them.
        nothing = sum(0.0 * p.sum() for p in network.parameters() if p.requires_grad)
        sums |= dict.fromkeys(idle, cast(Tensor, nothing))
    missing = [name for name in tasks if name not in sums]
    if missing:
        raise MethodError(
            f"Every batch must hold every task of the run (blank where unlabelled). Missing: {', '.join(missing)}. "
            "Give the data module's batches a target of each task."
        )
    return RankLosses([sums[name] for name in tasks], regularisers, representation)


def _predicted(network: Predict, inputs: Any, names: Sequence[str]) -> Outputs:
    try:
        return network(inputs, names)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise MethodError(
            f"BatchNorm needs more than one value per channel in training. {_alone(inputs)}. Use a larger "
            "trainer.batch_size or model.image_size, a smaller trainer.accumulate, or an encoder without BatchNorm."
        ) from error


def _alone(inputs: Any) -> str:
    height, width = extent(leaves(inputs)[0][0])
    if not height:
        return "A batch on a rank has one sample"
    return f"A batch of one image on a rank, of {height} x {width} pixels, reaches it as a map of one pixel"


def loss_sums(network: Predict, tasks: Mapping[str, Task], batch: Batch, wanted: Sequence[str]) -> list[Tensor]:
    """Returns the loss sums of the wanted tasks alone, without regularisers, which may count statistics."""
    sums: dict[str, Tensor] = {}
    for stream in streams(batch):
        names = [name for name in wanted if name in stream["targets"]]
        outputs = _predicted(network, inputs_of(stream), names) if names else Outputs({})
        sums |= {name: _loss(tasks[name], name, outputs, stream["targets"][name]) for name in names}
    device = leaves(inputs_of(streams(batch)[0]))[0].device
    zero = torch.zeros((), dtype=next((value.dtype for value in sums.values()), None), device=device)
    return [sums.get(name, zero) for name in wanted]


def label_counts(tasks: Mapping[str, Task], batch: Batch) -> list[int]:
    """Returns the number of valid elements of each task on this rank."""
    return [sum(stream["counts"].get(name, 0) for stream in streams(batch)) for name in tasks]


def scales(tasks: Mapping[str, Task]) -> list[float]:
    """Returns the static scale of each task."""
    return [task.scale for task in tasks.values()]


def _loss(task: Task, name: str, outputs: Outputs, target: Tensor) -> Tensor:
    """Returns the loss sum of one task, that of its auxiliary predictions included."""
    own = task.loss(full_precision(outputs.predictions[name]), target)
    more = (weight * task.loss(full_precision(p), target) for weight, p in outputs.auxiliary.get(name, ()))
    return sum(more, own)
