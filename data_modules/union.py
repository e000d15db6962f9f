"""`Union`: several data sets as one, a stream each, with tasks, sizes and rates of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mtlbench.data import Batch, Collate, MTLDataModule, Sample, Samples
from mtlbench.data.contract import lengths_of
from mtlbench.data.label_rules import ChangedLabels
from mtlbench.data.mixing import Active, read_mixing
from mtlbench.data.module import Augmented, Readable
from mtlbench.data.streams import CollateStreams, Fixed, Key, Mixed, Schedule, StreamBatches, unwindowed
from mtlbench.errors import DataError, SuiteError, unknown_name
from mtlbench.runs import keys
from mtlbench.seeding import seed_of
from mtlbench.tasks import Task

from .joined import description

STOPS = ("never", "shortest")


class Union(MTLDataModule):
    """Several data sets. Each sample has labels of its own data set's tasks only, and all share one encoder.

    Without ``mixing``, every step takes ``batch`` samples of each stream, or of those whose turn it is. With it, a step
    draws ``slots`` streams by a rule and takes the same number of samples of each.

    Args:
        root: Folder of the streams that name none of their own.
        streams: Stream -> ``module`` of the data set; ``tasks`` of it (default: all); ``options`` and ``root``; and
            without ``mixing``: ``batch``, samples per step (default: an equal share), and ``every``, the period in
            steps, of which the shortest counts as 1.
        mixing: A rule of `mtlbench.data.mixing.RULES`, or a mapping with ``rule`` and its options; none for fixed
            shares.
        slots: Streams that a step draws, with repetition.
        stop: ``never``: a stream starts again when all of its samples have been seen. ``shortest``: no sample is seen
            twice, and a longer run is refused.
        **common: See `MTLDataModule`.
    """

    VERSION: ClassVar[int] = 1
    TASKS: ClassVar[Mapping[str, Task]] = {}

    def __init__(
        self,
        root: str | None = None,
        *,
        streams: Mapping[str, Any] | None = None,
        mixing: Any = None,
        slots: int = 1,
        stop: str = "never",
        tasks: Mapping[str, Task] | None = None,
        **common: Any,
    ):
        chosen = self.tasks_by_stream(streams)
        every = {name: task for found in chosen.values() for name, task in found.items()}
        super().__init__(root, tasks=every if tasks is None else tasks, **common)
        self.given = dict(streams or {})
        self.mixing = None if mixing is None else read_mixing(mixing)
        self.slots_per_step, self.stop = slots, stop
        if stop not in STOPS:
            raise SuiteError(unknown_name("value of stop", str(stop), STOPS))
        if isinstance(self.mixing, Active):
            self.mixing.check(chosen)
        if self.mixing and self.mixing.follows and self.workers:
            raise SuiteError(
                f"Mixing by {self.mixing.follows} draws by what was measured during training, so nothing loads ahead: "
                "set trainer.workers to 0."
            )
        self.streams = {name: self._opened(name, found) for name, found in chosen.items()}
        self.streams = {name: data for name, data in self.streams.items() if data.tasks}
        self.SPLITS = description.common_splits([data.SPLITS for data in self.streams.values()])  # type: ignore[misc]
        self._evaluations: list[tuple[int, list[Any]]] = []
        self._first: dict[str, float] = {}

    @classmethod
    def miniature_of(cls, folder: Path, options: Mapping[str, Any]) -> Path:
        """Writes the small data sets of all streams that have one, in the same folder."""
        given = description.checked(options.get("streams"))
        found = []
        for module in dict.fromkeys(description.module_of(name, about) for name, about in given.items()):
            with suppress(DataError):  # Some streams need no files.
                found.append(module.miniature(folder))
        return found[0] if found else cls.miniature(folder)

    @classmethod
    def tasks_of(cls, options: Mapping[str, Any]) -> Mapping[str, Task]:
        """Returns the tasks of all streams."""
        streams = cls.tasks_by_stream(options.get("streams"))
        return {name: task for found in streams.values() for name, task in found.items()}

    @classmethod
    def tasks_by_stream(cls, streams: Any) -> dict[str, dict[str, Task]]:
        """Returns the tasks of every stream.

        Raises:
            SuiteError: A stream is described in another form, or two streams have a task of one name.
        """
        return description.tasks_by_stream(streams)

    @classmethod
    def inputs_kind(cls, options: Mapping[str, Any]) -> str:
        """Returns the kind of inputs that all streams have.

        Raises:
            SuiteError: They have several.
        """
        given = description.checked(options.get("streams"))
        kinds = {name: description.module_of(name, g).inputs_kind(g.get("options") or {}) for name, g in given.items()}
        if len(set(kinds.values())) > 1:
            found = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
            raise SuiteError(f"Streams share one encoder, so they have one kind of inputs. Found {found}.")
        return next(iter(kinds.values()))

    def input_sizes(self) -> dict[str, int]:
        """Returns the sizes that all streams have.

        Raises:
            SuiteError: They differ.
        """
        sizes = {name: data.input_sizes() for name, data in self.streams.items()}
        first = next(iter(sizes.values()))
        if any(found != first for found in sizes.values()):
            raise SuiteError(f"Streams share one encoder, so their inputs have one size. Found {sizes}.")
        return first

    def missing(self) -> list[str]:
        """Returns what the data sets lack, and why a run must end earlier."""
        absent = [f"{name}: {line}" for name, data in self.streams.items() for line in data.missing()]
        return absent or self._too_long()

    def absent_tasks(self) -> set[str]:
        """Returns the tasks without data in their data set."""
        return set().union(*(data.absent_tasks() for data in self.streams.values()))

    def fingerprint(self) -> str:
        """Returns a hash of the versions and fingerprints of the data sets."""
        parts = [(name, type(data).VERSION, data.fingerprint()) for name, data in self.streams.items()]
        return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()

    def sample_count(self, split: str) -> int | None:
        """Returns the number of samples of all streams; 0 if one of them has none."""
        counts = [len(data.samples(split)) for data in self.streams.values()]
        return sum(counts) if all(counts) else 0

    def downloads(self) -> list[Any]:
        """Returns the files of all streams that can be fetched, each once."""
        return list({item.name: item for data in self.streams.values() for item in data.downloads()}.values())

    def read(self, path: Path) -> Samples:
        """Returns the samples of a file of the user's; all streams have the same inputs, and the first reads it."""
        return next(iter(self.streams.values())).read(path)

    def doubts(self, split: str) -> list[str]:
        """Returns the doubts of all streams."""
        return [f"{name}: {line}" for name, data in self.streams.items() for line in data.doubts(split)]

    def samples(self, split: str) -> Samples:
        """Returns the samples of all streams, one stream after the other."""
        return _Joined([data.samples(split) for data in self.streams.values()])

    def training_samples(self) -> Samples:
        """Returns the training samples of all streams with the labels that the study leaves them."""
        return _Joined([self._training(name) for name in self.streams])

    @cached_property
    def schedule(self) -> Schedule:
        """Which streams a step draws.

        Raises:
            SuiteError: Shares do not add up to the batch.
        """
        if self.mixing is None:
            return self._fixed()
        if self.slots_per_step < 1 or self.batch_size % self.slots_per_step:
            raise SuiteError(
                f"A step takes equally many samples of each slot: slots divides trainer.batch_size {self.batch_size}. "
                f"Found {self.slots_per_step}."
            )
        size = self.batch_size // self.slots_per_step
        names = list(self.streams)
        lengths = [len(self._training(name)) for name in names]
        return Mixed(self.mixing, names, lengths, size, self.slots_per_step, self.steps, self.seed, self._history)

    def train_dataloader(self) -> DataLoader:
        """Returns micro-batches of streams from the trainer's current step to the end of the run."""
        samples = {name: self._training(name) for name in self.streams}
        lengths = {name: len(some) for name, some in samples.items()}
        found = {name: lengths_of(some) for name, some in samples.items()}
        by_length = {name: counts for name, counts in found.items() if counts is not None}
        place = {**self._place(), "sample_lengths": by_length}
        batches: Any = StreamBatches(self.schedule, lengths, self.steps, self.seed, **place)
        each = {name: Augmented(some, self.streams[name].augment, self.seed) for name, some in samples.items()}
        loading = {**self._loading(), "collate_fn": CollateStreams(self._collates())}
        return DataLoader(_Streams(each), batch_sampler=batches, **loading)

    def eval_dataloader(self, split: str) -> Any:
        """Returns this rank's share of every stream, one stream after the other, every sample once over all ranks."""
        if split not in self.SPLITS:
            return super().eval_dataloader(split)
        return self._shares({name: data.samples(split) for name, data in self.streams.items()}, split)

    def fitting_dataloader(self) -> Any:
        """Returns this rank's share of the training samples without augmentation."""
        return self._shares({name: self._training(name) for name in self.streams}, "train")

    def observe(self, step: int, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Keeps the score of every stream, for mixing by score."""
        if self.mixing and self.mixing.follows == "scores":
            found = [[self._closeness(name, scores[name]) for name in data.tasks] for data in self.streams.values()]
            self._evaluations.append((step, [sum(values) / len(values) for values in found]))

    def probes(self, step: int) -> dict[str, tuple[Batch, Batch]]:
        """Returns two batches of every stream, if a rule follows gradients; they depend on seed and step alone."""
        if not (self.mixing and self.mixing.follows == "gradients"):
            return {}
        size = max(1, self.batch_size // self.slots_per_step // 2)
        return {name: self._probe(name, size, step) for name in self.streams}

    def observe_gradients(self, step: int, moments: Mapping[str, tuple[float, float]]) -> None:
        """Keeps the moments of every stream's gradient, for mixing by gradient."""
        self._evaluations.append((step, [moments[name] for name in self.streams]))

    def head_samples(self, step: int) -> dict[str, Batch]:
        """Returns a batch of every stream at the end of a round, if a rule follows heads; see `probes`."""
        rule = self.mixing
        if not isinstance(rule, Active) or rule.target not in self.tasks or len(self.streams) < 2:
            return {}
        if rule.finished(step / self.steps) <= len(self._evaluations):
            return {}
        return {name: self._drawn(name, rule.samples, step) for name in self.streams}

    def observe_heads(self, step: int, heads: Mapping[str, Sequence[float]]) -> None:
        """Keeps how much of the target's head each stream explains, for mixing by heads."""
        if isinstance(self.mixing, Active):
            owner = {task: name for name, data in self.streams.items() for task in data.tasks}
            self._evaluations.append((step, self.mixing.explained(owner, heads)))

    def diagnostics(self, step: int) -> dict[str, float]:
        """Returns the probability of every stream, if a rule mixes them."""
        schedule = self.schedule
        if not isinstance(schedule, Mixed):
            return {}
        found = zip(self.streams, schedule.probabilities(step), strict=True)
        return {keys.MIXING.key(stream=name): float(p) for name, p in found}

    def state_dict(self) -> dict[str, Any]:
        """Returns what the rule of mixing followed so far, for resuming."""
        return {"evaluations": [[step, *scores] for step, scores in self._evaluations], "first": dict(self._first)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores them."""
        self._evaluations = [(int(step), list(scores)) for step, *scores in state_dict["evaluations"]]
        self._first = dict(state_dict["first"])

    def _fixed(self) -> Fixed:
        share = self.batch_size // len(self.given)
        batch = {name: int(given.get("batch") or share) for name, given in self.given.items()}
        if sum(batch.values()) != self.batch_size:
            raise SuiteError(
                f"The batches of all streams add up to trainer.batch_size, {self.batch_size}. Found {batch}. Change "
                "`batch` of the streams."
            )
        every = {name: int(self.given[name].get("every") or 1) for name in self.streams}
        # A run on some of the tasks takes as many samples of their streams a step, and makes no steps without any.
        least = min(every.values())
        return Fixed({n: batch[n] for n in self.streams}, {n: -(-period // least) for n, period in every.items()})

    def _history(self, step: int) -> list[list[Any]]:
        return [followed for at, followed in self._evaluations if at <= step]

    def _probe(self, name: str, size: int, step: int) -> tuple[Batch, Batch]:
        """Returns two batches of different training samples of a stream."""
        found = self._chosen(name, 2 * size, step)
        size = len(found) // 2
        if not size:
            raise SuiteError(f"Mixing by gradients compares two samples of a stream. {name} has one. Add samples.")
        collate = Collate(self.streams[name].tasks)
        return collate(found[:size]), collate(found[size : 2 * size])

    def _drawn(self, name: str, count: int, step: int) -> Batch:
        """Returns a batch of different training samples of a stream, at most as many as it has."""
        return Collate(self.streams[name].tasks)(self._chosen(name, count, step))

    def _chosen(self, name: str, count: int, step: int) -> list[Sample]:
        samples = Readable(self._training(name), "train")
        order = np.random.default_rng(seed_of("probe", name, self.seed, step)).permutation(len(samples))
        return [samples[int(index)] for index in order[:count]]

    def _closeness(self, name: str, scores: Mapping[str, float]) -> float:
        """Returns a task's score from 0 to 1 = perfect: shares as they are, errors as a share of the first one.

        It is the first of the task's scores that was measured: success in rollouts may be known at the end only.
        """
        protocols = self.tasks[name].protocols
        protocol = next((p for p in protocols if scores[p.id] == scores[p.id]), protocols[0])
        value = scores[protocol.id]
        if value != value:
            return 0.0
        if protocol.higher_is_better:
            return min(1.0, max(0.0, value))
        first = self._first.setdefault(name, value)
        return min(1.0, max(0.0, 1 - value / first)) if first else 1.0

    def _opened(self, name: str, found: Mapping[str, Task]) -> MTLDataModule:
        given = self.given[name]
        tasks = {task: self.tasks[task] for task in found if task in self.tasks}
        root = given.get("root", self.root)
        data = description.module_of(name, given)(root, tasks=tasks, seed=self.seed, **(given.get("options") or {}))
        return unwindowed(data, name)

    def _training(self, name: str) -> Samples:
        samples, tasks = self.streams[name].samples("train"), self.streams[name].tasks
        rules = {task: rule for task, rule in self.labels.items() if task in tasks}
        return ChangedLabels(samples, rules, tasks, self.seed, self.batch_size) if rules else samples

    def _collates(self) -> dict[str, Collate]:
        return {name: Collate(data.tasks) for name, data in self.streams.items()}

    def _shares(self, samples: Mapping[str, Samples], split: str) -> _Chained:
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        size, loaders = max(1, self.batch_size // (self.micro * world)), {}
        for name, collate in self._collates().items():
            share = torch.utils.data.Subset(Readable(samples[name], split), range(rank, len(samples[name]), world))
            loaders[name] = DataLoader(share, batch_size=size, **{**self._loading(), "collate_fn": collate})
        return _Chained(loaders)

    def _too_long(self) -> list[str]:
        if self.stop == "never":
            return []
        lengths = {name: len(data.samples("train")) for name, data in self.streams.items()}
        batches = StreamBatches(self.schedule, lengths, self.steps, self.seed)
        for step, name in batches.repeats():
            return [
                f"stop: shortest sees no sample twice. {name}, with {lengths[name]} training samples, is used up after "
                f"{step} steps, and trainer.steps is {self.steps}. Lower trainer.steps, or set stop: never."
            ]
        return []


class _Joined:
    """Samples of several sets, one after the other."""

    def __init__(self, parts: Sequence[Samples]):
        self.places = [(part, index) for part in parts for index in range(len(part))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        part, place = self.places[index]
        return part[place]


class _Streams(Dataset):
    """Training samples by their key."""

    def __init__(self, streams: Mapping[str, Any]):
        self.streams = streams

    def __getitem__(self, key: Key) -> tuple[str, Sample]:
        name, epoch, index = key
        return name, self.streams[name][(epoch, index)]


class _Chained:
    """The batches of several loaders, each as a batch of one stream."""

    def __init__(self, loaders: Mapping[str, DataLoader]):
        self.loaders = loaders

    def __len__(self) -> int:
        return sum(map(len, self.loaders.values()))

    def __iter__(self) -> Iterator[Batch]:
        for name, loader in self.loaders.items():
            for batch in loader:
                yield Batch(streams={name: batch})
