"""Cost of a run: training time, FLOPs of prediction and of training, peak memory, parameters, device."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device

from mtlbench.data import Batch
from mtlbench.method import MTLMethod
from mtlbench.method.forward import label_counts
from mtlbench.networks.families import family_of
from mtlbench.networks.family import Model
from mtlbench.networks.flops import FlopCounter, cost_alone, counting, forward_flops
from mtlbench.training.evaluation import evaluating

BEFORE = "before the first step"
"""Kind of what a method computes only once."""


class StepFlops:
    """FLOPs of a training: one micro-batch of every kind is counted, and multiplied by how often its kind occurs.

    Micro-batches of one kind belong to steps of one `MTLMethod.phase`, have labels of equally many tasks, and either
    all end their step or none does. The micro-batch that is counted does not measure gradient conflict, if there is one
    that does not.

    Args:
        state: What `state` returned, to go on from there.
    """

    def __init__(self, state: Mapping[str, Sequence[int]] | None = None) -> None:
        # By kind: FLOPs, whether they are free of measurements of conflict, micro-batches.
        self._kinds: dict[str, list[int]] = {kind: list(found) for kind, found in (state or {}).items()}
        self._open = ExitStack()
        self._counting: tuple[str, bool, FlopCounter] | None = None
        self._begun = False

    def begin(self, method: MTLMethod, batch: Batch, batch_idx: int) -> None:
        """Note a micro-batch, and count it if none of its kind has been counted."""
        if not self._begun and (before := method.preparation_flops()):
            self._kinds[BEFORE] = [before, True, 1]
        self._begun = True
        step, micro = method.trainer.global_step, method.trainer.accumulate_grad_batches
        active = sum(count > 0 for count in label_counts(method.tasks, batch))
        kind = f"{method.phase(step)}, {active} tasks{', end' if batch_idx % micro == micro - 1 else ''}"
        plain = not method.diagnoses(step)
        known = self._kinds.setdefault(kind, [0, False, 0])
        known[2] += 1
        if known[2] == 1 or plain and not known[1]:
            self._counting = kind, plain, self._open.enter_context(counting(method.network))

    def end(self) -> bool:
        """End counting, and return whether the micro-batch was counted."""
        if self._counting is None:
            return False
        self._open.close()
        kind, plain, counter = self._counting
        self._kinds[kind][:2] = counter.flops, plain
        self._counting = None
        return True

    def state(self) -> dict[str, list[int]]:
        """Return plain values for a checkpoint."""
        return {kind: list(found) for kind, found in self._kinds.items()}

    @property
    def before(self) -> int:
        """FLOPs of what the method computed before its first step, on this rank."""
        return self._kinds.get(BEFORE, [0])[0]

    def per_step(self, phase: str = "") -> float | None:
        """Return the mean FLOPs of a step on this rank, of one phase or of all, without `before`; None if none ran."""
        kinds = {kind: of for kind, of in self._kinds.items() if kind != BEFORE}
        found = {kind: of for kind, of in kinds.items() if not phase or kind.startswith(f"{phase}, ")}
        steps = sum(times for kind, (_, _, times) in found.items() if kind.endswith(", end"))
        return sum(flops * times for flops, _, times in found.values()) / steps if steps else None


def cost_of(method: MTLMethod, seconds: float, world: int, flops: StepFlops, steps: int) -> dict[str, Any]:
    """Return the section ``cost`` of a result.

    Args:
        method: Trained method in a trainer.
        seconds: Training time.
        world: Number of ranks.
        flops: FLOPs of its steps on this rank.
        steps: Optimiser steps.
    """
    cuda = method.device.type == "cuda"
    peak = peak_memory(cuda=cuda)  # Before the forward passes below, which are not part of training.
    per_step = flops.per_step()
    return {
        "train_seconds": seconds,
        "training_flops": None if per_step is None else round((flops.before + per_step * steps) * world),
        **prediction_cost(method),
        "peak_memory_gib": peak / 2**30,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "devices": world,
        "threads": torch.get_num_threads(),
    }


def prediction_cost(method: MTLMethod) -> dict[str, Any]:
    """Return parameters, and FLOPs per sample, of all tasks together and of every task alone."""
    model = Model(**method.spec.model)
    inputs = move_data_to_device(family_of(model.encoder).example(model), method.device)
    with evaluating(method):
        alone = {task: cost_alone(method.network, inputs, task) for task in method.tasks}
        return {
            "flops": forward_flops(method.network, inputs, list(method.tasks)),
            "flops_alone": {task: flops for task, (flops, _) in alone.items()},
            "parameters": sum(p.numel() for p in method.network.parameters() if p.requires_grad),
            "parameters_active": {task: round(count) for task, (_, count) in alone.items()},
        }


def peak_memory(*, cuda: bool) -> int:
    """Return peak memory in bytes: that of the accelerator, or the resident memory of this process."""
    if cuda:
        return torch.cuda.max_memory_allocated()
    # Linux reports kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
