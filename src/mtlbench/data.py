"""Data: the batch contract, stateless loading, and `MTLDataModule`, the base of every data set.

**Sample** (what a data set returns for an index)::

    {"image": uint8 (3, H, W), RGB,
     "targets": {task: target},          # a missing label is simply absent
     "id": str}

**Batch** (what a method receives)::

    {"image": uint8 (B, 3, H, W),
     "targets": {task: (B, ...)},        # every task of the run; missing labels hold the task's blank
     "counts": {task: int},              # valid elements of this batch, as plain integers: no device sync
     "id": [str] * B}

**Streams**: a data set with one input stream per task returns ``{"streams": {name: batch}}`` instead; every inner
batch is a batch as above whose ``targets`` hold only the tasks of that stream.

Everything random is a function of (seed, epoch, index) or (seed, step): nothing has a state that a checkpoint
would have to save, and a resumed run sees exactly the batches of an uninterrupted one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, cast

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mtlbench.errors import DataError, SuiteError
from mtlbench.labels import ChangedLabels, Rules
from mtlbench.noise import seed_of
from mtlbench.tasks import Task

Sample = dict[str, Any]
Batch = dict[str, Any]


class Samples(Protocol):
    """A finite, indexable set of samples."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


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
    """

    def __init__(
        self, size: int, batch_size: int, steps: int, seed: int, *, start: int = 0, micro: int = 1, rank: int = 0,
        world: int = 1, batches: int = 1,
    ):  # fmt: skip
        check_division(batch_size, world, micro, batches)
        if size < batch_size:
            raise SuiteError(
                f"A batch is drawn without repetition: batch_size {batch_size} is larger than the training set "
                f"({size} samples). Lower trainer.batch_size."
            )
        self.size, self.batch_size, self.steps, self.seed = size, batch_size, steps, seed
        self.start, self.micro, self.rank, self.world, self.batches = start, micro, rank, world, batches

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the data; the rest of the permutation is dropped."""
        return self.size // self.batch_size

    def __len__(self) -> int:
        # The whole run, also when resuming: Lightning compares it with the batches it has counted since step 0.
        return self.steps * self.micro * self.batches

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
                order = np.random.default_rng(seed_of("order", self.seed, epoch)).permutation(self.size)
                epoch_drawn = epoch
            batch = order[offset * self.batch_size : (offset + 1) * self.batch_size]
            for part in self.parts(batch):
                yield [(epoch, int(index)) for index in part]


class _Augmented(Dataset):
    """Applies the data module's augmentation with a generator that depends on (seed, epoch, index) alone."""

    def __init__(self, samples: Samples, augment: Callable[[Sample, np.random.Generator], Sample], seed: int):
        self.samples, self.augment, self.seed = samples, augment, seed

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        return self.augment(self.samples[index], np.random.default_rng(seed_of("augment", self.seed, epoch, index)))


class Collate:
    """Stacks samples into a batch, fills missing labels with the task's blank, and counts valid elements."""

    def __init__(self, tasks: Mapping[str, Task]):
        self.tasks = dict(tasks)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Returns the batch of the module's docstring."""
        shapes = {tuple(sample["image"].shape) for sample in samples}
        if len(shapes) > 1:
            ids = ", ".join(sample["id"] for sample in samples[:4])
            raise DataError(f"Images of one batch must have one size. Found {sorted(shapes)} among {ids}.")
        image = torch.stack([sample["image"] for sample in samples])
        targets = {name: torch.stack([self._target(s, task) for s in samples]) for name, task in self.tasks.items()}
        counts = {name: task.count(targets[name]) for name, task in self.tasks.items()}
        return {"image": image, "targets": targets, "counts": counts, "id": [sample["id"] for sample in samples]}

    @staticmethod
    def _target(sample: Sample, task: Task) -> torch.Tensor:
        height, width = sample["image"].shape[-2:]
        target = sample["targets"].get(task.name)
        if target is None:
            return task.blank(height, width)
        if task.dense and target.shape[-2:] != (height, width):
            raise DataError(
                f"A label must have the size of its image. {sample['id']}: {task.name} is "
                f"{tuple(target.shape[-2:])}, the image {(height, width)} (height, width)."
            )
        return target


class MTLDataModule(L.LightningDataModule):
    """Base of every data set. A subclass gives `TASKS`, `VERSION` and `samples`; the rest is shared.

    Args:
        root: Folder of the data, or None for data sets that need none.
        tasks: Tasks of this run. None stands for all of `TASKS`.
        batch_size: Effective batch over all ranks and micro-batches.
        steps: Optimiser steps of the run.
        seed: Seed of the run: order and augmentation.
        workers: Loader processes; 0 loads in the training process.
        micro: Micro-batches per optimiser step.
        batches: Independent mini-batches per micro-batch; see `StepBatches`.

    Attributes:
        VERSION: Raise it when the same options give other samples; it enters every run's identity.
        TASKS: Every task that this data can serve.
        SPLITS: Split names; scores are reported on the last one, selection may look at ``"val"``.
        clip_length: Consecutive samples of the evaluation splits that are one clip; 1 for single images.
        labels: What a study does to training labels, by task; see `mtlbench.labels`.
    """

    VERSION: ClassVar[int] = 1
    TASKS: ClassVar[Mapping[str, Task]]
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val")
    clip_length: int = 1

    def __init__(
        self, root: str | None = None, *, tasks: Mapping[str, Task] | None = None, batch_size: int = 8,
        steps: int = 1, seed: int = 0, workers: int = 0, micro: int = 1, batches: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.root = root
        self.tasks = dict(tasks if tasks is not None else self.TASKS)
        self.batch_size, self.steps, self.seed, self.workers, self.micro = batch_size, steps, seed, workers, micro
        self.batches = batches
        self.labels: Rules = {}

    @abstractmethod
    def samples(self, split: str) -> Samples:
        """Returns the samples of one split, labels of `self.tasks` only, without augmentation."""

    def originals(self, split: str) -> Samples:
        """Returns the samples as their files hold them, for `verify`. Default: those of `samples`."""
        return self.samples(split)

    def downloads(self) -> list[Any]:
        """Returns the files that can be fetched from public addresses; see `mtlbench.download`. Default: none."""
        return []

    def augment(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Returns a randomly changed training sample; draws from ``generator`` alone. Default: unchanged."""
        return sample

    def missing(self) -> list[str]:
        """Returns what is absent, one line each, with where it was looked for and the remedy; empty if complete.

        Optional tasks whose data is absent are not faults: see `absent_tasks`.
        """
        return []

    def absent_tasks(self) -> set[str]:
        """Returns the tasks whose whole data is absent. Optional ones are dropped, others are an error."""
        return set()

    def fingerprint(self) -> str:
        """Returns what identifies the data itself: ids of the splits and sizes of the files. Never paths."""
        return ""

    def steps_per_epoch(self) -> int:
        """Returns optimiser steps in one pass over the training split."""
        return max(1, len(self.training_samples()) // self.batch_size)

    def training_samples(self) -> Samples:
        """Returns the training samples with the labels that the study leaves them."""
        samples = self.samples("train")
        return ChangedLabels(samples, self.labels, self.tasks, self.seed, self.batch_size) if self.labels else samples

    def train_dataloader(self) -> DataLoader:
        """Returns micro-batches from the trainer's current step to the end of the run, in one go."""
        samples = self.training_samples()
        trainer = self.trainer
        batches = StepBatches(
            len(samples), self.batch_size, self.steps, self.seed, micro=self.micro, batches=self.batches,
            start=trainer.global_step if trainer else 0,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
        )  # fmt: skip
        # DataLoader only iterates a batch sampler; torch's annotation asks for its own class.
        sampler = cast(Any, batches)
        return DataLoader(_Augmented(samples, self.augment, self.seed), batch_sampler=sampler, **self._loading())

    def eval_dataloader(self, split: str) -> DataLoader:
        """Returns this rank's share of a split: every sample exactly once over all ranks, none repeated."""
        samples = self.samples(split)
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        share = torch.utils.data.Subset(cast(Dataset, samples), range(rank, len(samples), world))
        return DataLoader(share, batch_size=max(1, self.batch_size // (self.micro * world)), **self._loading())

    def _loading(self) -> dict[str, Any]:
        return {
            "collate_fn": Collate(self.tasks),
            "num_workers": self.workers,
            "pin_memory": torch.cuda.is_available(),
            # Forked from a process that has no threads of its own: quick to start, and nothing to pickle.
            "multiprocessing_context": "fork" if self.workers else None,
        }
