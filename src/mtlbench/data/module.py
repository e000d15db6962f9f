"""Data: the batch contract, stateless loading, and `MTLDataModule`, the base of every data set.

**Sample** (what a data set returns for an index)::

    {"inputs": inputs,                   # a tensor, or any nesting of tensors in mappings and lists
     "targets": {task: target},          # a missing label is simply absent
     "previous": inputs,                 # only in sequences: the inputs of the step before, or its own at the start
     "id": str}

Data sets of images write ``"image"`` in place of ``"inputs"``: uint8 (3, H, W), RGB. Only images have dense tasks.

**Batch** (what a method receives)::

    {"inputs": inputs,                   # those of the samples with a new first axis: uint8 (B, 3, H, W) for images
     "targets": {task: (B, ...)},        # every task of the run; missing labels hold the task's blank
     "counts": {task: int},              # valid elements of this batch, as plain integers: no device sync
     "previous": inputs,                 # only if every sample has them
     "id": [str] * B,
     "tokens": int}                      # texts alone: their tokens in all, without padding

**Streams**: a data set with one input stream per task returns ``{"streams": {name: batch}}`` instead; every inner
batch is a batch as above whose ``targets`` hold only the tasks of that stream.

Everything random depends on (seed, epoch, index) or (seed, step): a resumed run has the batches of a whole one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mtlbench.data.batches import Collate, StepBatches
from mtlbench.data.content import content_of
from mtlbench.data.contract import Batch, Sample, Samples, lengths_of
from mtlbench.data.label_rules import HELD_OUT, ChangedLabels, HeldOut, Rules, holds_out
from mtlbench.data.reading import Readable, Viewed
from mtlbench.data.rollouts import Rollout
from mtlbench.data.windows import Ahead, Window
from mtlbench.errors import DataError, SuiteError
from mtlbench.seeding import seed_of
from mtlbench.tasks import Task
from mtlbench.tasks.inputs import IMAGES


class Augmented(Dataset):
    """Applies the data module's augmentation with a generator that depends on (seed, epoch, index) alone.

    ``ahead`` is told which sample is read, before it is read.
    """

    def __init__(
        self,
        samples: Samples,
        augment: Callable[[Sample, np.random.Generator], Sample],
        seed: int,
        ahead: Ahead | None = None,
    ):
        self.samples, self.augment, self.seed, self.ahead = samples, augment, seed, ahead
        # A generator for every sample takes longer than a step on short vectors.
        self.plain = getattr(augment, "__func__", None) is MTLDataModule.augment

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        if self.ahead:
            self.ahead(epoch, index)
        if self.plain:
            return self.samples[index]
        return self.augment(self.samples[index], np.random.default_rng(seed_of("augment", self.seed, epoch, index)))


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
        INPUTS: What the inputs are: `mtlbench.tasks.inputs.IMAGES`, `VECTORS`, `TOKENS` or `GRAPHS`. The encoder must
            take them.
        PLACES: Options that say where and how the data is read and change no sample; not part of a run's identity.
        RENAMED: Option -> the name under which it enters a run's identity, for options that had another name when runs
            were first stored.
        labels: What a study does to training labels, by task; see `mtlbench.data.label_rules`.
        window: How training samples are shuffled that do not fit on a disk; None shuffles all of them.
    """

    VERSION: ClassVar[int] = 1
    TASKS: ClassVar[Mapping[str, Task]]
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val")
    INPUTS: ClassVar[str] = IMAGES
    PLACES: ClassVar[tuple[str, ...]] = ()
    RENAMED: ClassVar[Mapping[str, str]] = {}
    clip_length: int = 1
    window: Window | None = None

    def __init__(
        self,
        root: str | None = None,
        *,
        tasks: Mapping[str, Task] | None = None,
        batch_size: int = 8,
        steps: int = 1,
        seed: int = 0,
        workers: int = 0,
        micro: int = 1,
        batches: int = 1,
    ):
        super().__init__()
        self.root = root
        self.tasks = dict(tasks if tasks is not None else self.TASKS)
        self.batch_size, self.steps, self.seed, self.workers, self.micro = batch_size, steps, seed, workers, micro
        self.batches = batches
        self.labels: Rules = {}

    @classmethod
    def tasks_of(cls, options: Mapping[str, Any]) -> Mapping[str, Task]:
        """Returns every task that data with these options can serve. Default: `TASKS`.

        Raises:
            SuiteError: The options describe none.
        """
        return cls.TASKS

    @classmethod
    def inputs_kind(cls, options: Mapping[str, Any]) -> str:
        """Returns the kind of inputs of data with these options. Default: `INPUTS`."""
        return cls.INPUTS

    def observe(self, step: int, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Is told the validation scores of every task after a step, on every rank. Default: nothing happens.

        What it keeps must be in `state_dict`, so that a resumed run goes on as an uninterrupted one.
        """

    def probes(self, step: int) -> Mapping[str, tuple[Batch, Batch]]:
        """Returns pairs of batches, equal on all ranks, for `observe_gradients` at each evaluation. Default: none."""
        return {}

    def observe_gradients(self, step: int, moments: Mapping[str, tuple[float, float]]) -> None:
        """Is told ‖∇L‖² and the variance of one sample's gradient for every pair of `probes`; see `observe`."""

    def head_samples(self, step: int) -> Mapping[str, Batch]:
        """Returns batches, equal on all ranks, for `observe_heads` after this step. Default: none."""
        return {}

    def observe_heads(self, step: int, heads: Mapping[str, Sequence[float]]) -> None:
        """Is told a linear head of every task of `head_samples`, see `mtlbench.training.linear_heads`, as `observe`."""

    def diagnostics(self, step: int) -> dict[str, float]:
        """Returns numbers by name that are recorded whenever losses are. Default: none."""
        return {}

    @classmethod
    def identity_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a suite's options under the names that a run's identity uses, without `PLACES`; see `RENAMED`."""
        return {cls.RENAMED.get(name, name): value for name, value in options.items() if name not in cls.PLACES}

    @classmethod
    def stored_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options of a stored run under the names that the constructor takes."""
        today = {old: new for new, old in cls.RENAMED.items()}
        return {today.get(name, name): value for name, value in options.items()}

    @classmethod
    def miniature(cls, folder: Path) -> Path:
        """Writes a small data set in this set's own layout and returns its root; for ``SAMPLE=1``.

        Raises:
            DataError: The data needs no files, or nobody wrote a miniature of it. This is the default.
        """
        rule = "SAMPLE=1 writes a small data set where a suite needs files"
        raise DataError(f"{rule}. {cls.__name__} has none to write: leave SAMPLE out.")

    @classmethod
    def miniature_of(cls, folder: Path, options: Mapping[str, Any]) -> Path:
        """Writes a small data set for a suite's ``data.options`` and returns its root. Default: `miniature`."""
        return cls.miniature(folder)

    @classmethod
    def convert(cls, source: Path, folder: Path, watch: Callable[[int, int], None] = lambda done, total: None) -> Path:
        """Writes the data set in a layout that this class reads, from the file that its authors distribute.

        Args:
            source: That file.
            folder: Where the layout's own folder is put; made if absent.
            watch: Called with the number of images written so far and in all.

        Returns:
            The folder that was written.

        Raises:
            DataError: The file is damaged or of another form, or a folder of that name exists. By default always: most
                sets are read as they are distributed.
        """
        raise DataError(
            f"{cls.__name__} reads its files as they are: there is nothing to convert. Leave --convert out."
        )

    def shard(self, url: str, watch: Callable[[str, int, int], None] = lambda split, done, total: None) -> int:
        """Writes the data as shards below a URL, for training on machines whose disk is too small.

        Args:
            url: A folder, or any URL that fsspec can write to.
            watch: Called with the split, and its shards that are written and in all.

        Returns:
            Shards that were missing.

        Raises:
            DataError: The data has no such form. This is the default.
        """
        raise DataError(f"{type(self).__name__} is not written as shards: it reads its files as they are.")

    @abstractmethod
    def samples(self, split: str) -> Samples:
        """Returns the samples of one split, labels of `self.tasks` only, without augmentation."""

    def input_sizes(self) -> dict[str, int]:
        """Returns the sizes that an encoder must know to take the inputs, for example ``{"features": 103}``.

        Default: none. The size of images is `model.image_size` of the suite.
        """
        return {}

    def originals(self, split: str) -> Samples:
        """Returns the samples as their files hold them, for `verify`. Default: those of `samples`."""
        return self.samples(split)

    def read(self, path: Path) -> Samples:
        """Returns the samples of a file of the user's, without labels, for `mtlbench predict`.

        Raises:
            DataError: By default: images are read without the data module.
        """
        raise DataError(
            f"{type(self).__name__} does not say how its inputs are read from a file. {path}: override `read` in the "
            "data module."
        )

    def doubts(self, split: str) -> list[str]:
        """Returns what looks wrong in the files of a split although every one can be read, for `verify`.

        A line for each doubt: the kind of file, the fact, its likely cause. Default: none.
        """
        return []

    def downloads(self) -> list[Any]:
        """Returns the files that can be fetched from public addresses; see `mtlbench.data.download`. Default: none."""
        return []

    def augment(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Returns a randomly changed training sample; draws from ``generator`` alone. Default: unchanged."""
        return sample

    def view(self, sample: Sample) -> Sample:
        """Returns a training sample without augmentation in the form of the other splits. Default: unchanged."""
        return sample

    def missing(self) -> list[str]:
        """Returns what is absent, one line each, with its place and the remedy; optional tasks: see `absent_tasks`."""
        return []

    def absent_tasks(self) -> set[str]:
        """Returns the tasks whose whole data is absent. Optional ones are dropped, others are an error."""
        return set()

    def fingerprint(self) -> str:
        """Returns what identifies the data itself, so that a change of it makes finished runs count as not done.

        Default: a hash of the names, sizes and times of the visible files under ``root``; ``""`` without a root.
        Override it where the files are many, where copies with other times are the same data, or where the data
        needs no files. Never use absolute paths.
        """
        return content_of(Path(self.root).expanduser()) if self.root else ""

    def sample_count(self, split: str) -> int | None:
        """Returns the number of samples of a split if that is known without reading them, else None.

        A study is refused at once, instead of in its runs, if a split is empty or smaller than a batch.
        """
        return None

    def unidentified(self) -> str | None:
        """Returns a warning if nothing identifies the data, so that a change of it goes unnoticed; else None."""
        if self.fingerprint():
            return None
        return (
            f"{type(self).__name__} has neither files under a root nor a fingerprint() of its own: after a change of "
            "the data, finished runs still count as done. Override fingerprint(), or raise VERSION with every change."
        )

    def steps_per_epoch(self) -> int:
        """Returns optimiser steps in one pass over the training split."""
        return max(1, len(self.training_samples()) // self.batch_size)

    def training_samples(self) -> Samples:
        """Returns the training samples with the labels that the study leaves them."""
        samples = self.samples("train")
        self.check_rules(self.labels)
        return ChangedLabels(samples, self.labels, self.tasks, self.seed, self.batch_size) if self.labels else samples

    def check_rules(self, labels: Rules) -> None:
        """Checks that the training samples can be read as rules on their labels need it.

        Raises:
            SuiteError: They are read through a window.
        """
        if labels and self.window:
            raise SuiteError(
                "Rules on labels read all training samples, and a window only those of a few shards. "
                f"{type(self).__name__} has a window of {self.window.shards} shards, and the study changes labels of "
                f"{', '.join(labels)}. Leave data.options.window out, or the scenario."
            )

    def train_dataloader(self) -> DataLoader:
        """Returns micro-batches from the trainer's current step to the end of the run, in one go."""
        samples = self.training_samples()
        lengths = lengths_of(samples)
        place = {**self._place(), "lengths": lengths, "shuffle": self.window.order if self.window else None}
        batches = StepBatches(len(samples), self.batch_size, self.steps, self.seed, **place)
        # DataLoader only iterates a batch sampler; torch's annotation asks for its own class.
        sampler = cast(Any, batches)
        prefetch = getattr(samples, "prefetch", None)
        ahead = Ahead(batches.order, prefetch, self.window.samples) if self.window and prefetch else None
        augmented = Augmented(Readable(samples, "train"), self.augment, self.seed, ahead)
        return DataLoader(augmented, batch_sampler=sampler, **self._loading())

    def _place(self) -> dict[str, Any]:
        """Returns where in the run, and on which of how many ranks, this process reads its micro-batches."""
        trainer = self.trainer
        return {
            "micro": self.micro,
            "batches": self.batches,
            "start": trainer.global_step if trainer else 0,
            "rank": trainer.global_rank if trainer else 0,
            "world": trainer.world_size if trainer else 1,
        }

    def scored_split(self) -> str:
        """Returns the split on which a run is scored: the last one, or the examples that its rule holds out."""
        return HELD_OUT if holds_out(self.labels) else self.SPLITS[-1]

    def scored_samples(self, split: str) -> Samples:
        """Returns the samples of a split, or those that the run's rule on labels holds out."""
        if split == HELD_OUT:
            return HeldOut(Viewed(self.samples("train"), self.view), self.labels, self.seed)
        return self.samples(split)

    def eval_dataloader(self, split: str) -> DataLoader:
        """Returns this rank's share of a split: every sample exactly once over all ranks, none repeated."""
        return self._share(self.scored_samples(split), split)

    def rollouts(self, split: str, *, final: bool = False) -> Sequence[Rollout]:
        """Returns the episodes in which a trained network acts, for a split: the same on every rank, in one order.

        Args:
            split: The split on which the network is scored.
            final: Whether training is over. During training, few episodes keep evaluations short.

        Default: none. Tasks with rollouts have metrics with ``add_episodes``, see `mtlbench.metrics.Success`.
        """
        return ()

    def fitting_dataloader(self) -> DataLoader:
        """Returns this rank's share of the training samples in order, with their labels, without augmentation."""
        return self._share(Viewed(self.training_samples(), self.view), "train")

    def _share(self, samples: Samples, split: str) -> DataLoader:
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        order = self.window.in_turn(len(samples)).tolist() if self.window and split == "train" else range(len(samples))
        share = torch.utils.data.Subset(Readable(samples, split), order[rank::world])
        return DataLoader(share, batch_size=max(1, self.batch_size // (self.micro * world)), **self._loading())

    def _loading(self) -> dict[str, Any]:
        return {
            "collate_fn": Collate(self.tasks),
            "num_workers": self.workers,
            "pin_memory": torch.cuda.is_available(),
            # Forked from a process that has no threads of its own: quick to start, and nothing to pickle.
            "multiprocessing_context": "fork" if self.workers else None,
        }
