"""Batches: which samples a step sees on which rank, and how they are stacked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import torch

from mtlbench.data.contract import Batch, Sample
from mtlbench.errors import DataError, SuiteError
from mtlbench.seeding import seed_of
from mtlbench.tasks import Task, form_fault
from mtlbench.tasks.inputs import extent, input_fault, inputs_of, is_text, stacked


def check_division(batch_size: int, world: int, micro: int, batches: int = 1) -> None:
    """Checks that every rank and micro-batch gets the same number of samples, and every mini-batch within it some.

    Raises:
        SuiteError: If not.
    """
    if batch_size % (micro * world):
        raise SuiteError(
            f"The effective batch must divide evenly: trainer.batch_size {batch_size} is not a multiple of "
            f"{world} device(s) x {micro} micro-batch(es). Change batch_size, DEVICES or trainer.accumulate."
        )
    part = batch_size // (micro * batches)
    if part == 0 or part % world:
        raise SuiteError(
            f"A rule on {batches} mini-batches cuts the batch, and every rank gets the same share of each: "
            f"trainer.batch_size {batch_size} gives {part} sample(s) for {world} device(s). "
            f"Choose a multiple of {batches * micro * world}."
        )


WINDOW = 32
"""Batches that are sorted by length together. More would waste less padding, and mix the samples less."""


def by_length(order: np.ndarray, lengths: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Returns an order whose consecutive ``size`` samples have similar lengths, so that they need little padding.

    Samples are sorted within windows of `WINDOW` batches. The batches, and the samples of a batch, are then shuffled.

    Args:
        order: Indices of samples; what fills no batch at the end is dropped.
        lengths: Length of every sample, by index.
        size: Samples of a batch.
        generator: Shuffles.
    """
    kept = order[: len(order) // size * size]
    windows = (kept[start : start + WINDOW * size] for start in range(0, len(kept), WINDOW * size))
    batches = np.concatenate([some[np.argsort(lengths[some], kind="stable")] for some in windows]).reshape(-1, size)
    return generator.permuted(batches[generator.permutation(len(batches))], axis=1).reshape(-1)


class StepBatches:
    """Yields the (epoch, index) pairs of each micro-batch of this rank, from a given step to the last.

    A step's global batch is a slice of the epoch's permutation; ranks and micro-batches divide it between them,
    so the samples of a step do not depend on how many ranks or micro-batches there are.

    Args:
        size: Samples in the training set.
        batch_size: Effective batch: samples per optimiser step over all ranks and micro-batches.
        steps: Optimiser steps of the whole run.
        seed: Seed of the run.
        start: First step to yield, for resuming.
        micro: Micro-batches per step (gradient accumulation).
        rank: This rank.
        world: Number of ranks.
        batches: Independent mini-batches that every micro-batch is cut into, for rules that need several; of equal
            size, what is left over is not used.
        lengths: Length of every sample, for batches of samples of similar length.
        shuffle: Returns the order of a pass, drawn with a generator; None shuffles all samples.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        steps: int,
        seed: int,
        *,
        start: int = 0,
        micro: int = 1,
        rank: int = 0,
        world: int = 1,
        batches: int = 1,
        lengths: np.ndarray | None = None,
        shuffle: Callable[[int, np.random.Generator], np.ndarray] | None = None,
    ):
        check_division(batch_size, world, micro, batches)
        if size < batch_size:
            raise SuiteError(
                f"A batch is drawn without repetition: batch_size {batch_size} is larger than the training set "
                f"({size} samples). Lower trainer.batch_size."
            )
        self.size, self.batch_size, self.steps, self.seed = size, batch_size, steps, seed
        self.start, self.micro, self.rank, self.world, self.batches = start, micro, rank, world, batches
        self.lengths, self.shuffle = lengths, shuffle

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the data; the rest of the permutation is dropped."""
        return self.size // self.batch_size

    def __len__(self) -> int:
        # The whole run, also when resuming: Lightning compares it with the batches it has counted since step 0.
        return self.steps * self.micro * self.batches

    def order(self, epoch: int) -> np.ndarray:
        """Returns the indices of all samples in the order of one pass."""
        generator = np.random.default_rng(seed_of("order", self.seed, epoch))
        order = self.shuffle(self.size, generator) if self.shuffle else generator.permutation(self.size)
        return order if self.lengths is None else by_length(order, self.lengths, self.batch_size, generator)

    def parts(self, batch: np.ndarray) -> Iterator[np.ndarray]:
        """Yields this rank's share of each mini-batch of a step's batch, in order."""
        for micro in np.split(batch, self.micro):
            size = len(micro) // self.batches
            for start in range(0, self.batches * size, size):
                yield micro[start : start + size][self.rank :: self.world]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch_drawn, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start, self.steps):
            epoch, offset = divmod(step, self.steps_per_epoch)
            if epoch != epoch_drawn:
                order, epoch_drawn = self.order(epoch), epoch
            batch = order[offset * self.batch_size : (offset + 1) * self.batch_size]
            for part in self.parts(batch):
                yield [(epoch, int(index)) for index in part]


class Collate:
    """Stacks samples into a batch, fills missing labels with the task's blank, and counts valid elements.

    The form of every target is checked, and its values when this process sees the sample for the first time: a wrong
    label is an error with a name and not a wrong score, and the check costs one pass over the data, not one per epoch.
    """

    def __init__(self, tasks: Mapping[str, Task]):
        self.tasks = dict(tasks)
        self._seen: set[str] = set()

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Returns the batch of the module's docstring.

        Raises:
            DataError: Inputs differ in form, or an input or a target breaks a rule.
        """
        new = {sample["id"] for sample in samples} - self._seen
        for sample in samples if new else ():
            if fault := input_fault(sample):
                raise DataError(f"{sample['id']}: {fault}. Correct what the data module returns.")
        inputs = stacked(samples)
        targets = {name: self._stacked(samples, name, task, new) for name, task in self.tasks.items()}
        self._seen |= new
        counts = {name: task.count(targets[name]) for name, task in self.tasks.items()}
        batch = Batch(inputs=inputs, targets=targets, counts=counts, id=[sample["id"] for sample in samples])
        if all("previous" in sample for sample in samples):
            batch["previous"] = stacked([{**sample, "inputs": sample["previous"]} for sample in samples])
        if is_text(inputs_of(samples[0])):
            # An integer of the host, so that no step waits for the device.
            batch["tokens"] = sum(len(inputs_of(sample)["tokens"]) for sample in samples)
        return batch

    @staticmethod
    def _stacked(samples: Sequence[Sample], name: str, task: Task, new: Collection[str]) -> torch.Tensor:
        height, width = extent(inputs_of(samples[0]))
        found = [sample["targets"].get(name) for sample in samples]
        for sample, target in zip(samples, found, strict=True):
            if target is not None and (fault := form_fault(task, target, height, width)):
                raise _wrong(sample, name, fault)
        batch = torch.stack([task.blank(height, width) if target is None else target for target in found])
        # Once over the batch, which costs less than image by image; the image is sought only where there is a fault.
        if new and task.fault_within(batch, height, width):
            for sample, target in zip(samples, found, strict=True):
                if target is not None and (fault := task.fault_within(target[None], height, width)):
                    raise _wrong(sample, name, fault)
        return batch


def _wrong(sample: Sample, name: str, fault: str) -> DataError:
    return DataError(
        f"{sample['id']}: {name}: {fault}. Correct the label or the data module that reads it; "
        "`mtlbench data SUITE --verify` finds every such label."
    )
