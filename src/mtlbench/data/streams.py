"""Several streams of samples with sizes, batch sizes and rates of their own: which samples a step sees."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtlbench.data.batches import Collate, by_length
from mtlbench.data.contract import Batch, Sample
from mtlbench.data.mixing import Mixing, draw
from mtlbench.errors import SuiteError
from mtlbench.seeding import seed_of

Key = tuple[str, int, int]
"""A training sample: stream, epoch of the stream, index."""

Slot = tuple[str, int]
"""Some samples of one stream in a step: its name and their number."""


class Schedule(ABC):
    """Which streams a step draws. Every stream's slots have one size, so that its order can be cut into slots."""

    @abstractmethod
    def slots(self, step: int) -> list[Slot]:
        """Returns the slots of a step, in order; the same on every rank."""

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Samples per slot, by stream."""


@dataclass(frozen=True)
class Fixed(Schedule):
    """Every stream has its own batch size, and takes part in every k-th step.

    Attributes:
        batch: Samples per step, by stream.
        every: k, by stream; a step k, 2k, ... counts from 0.
    """

    batch: Mapping[str, int]
    every: Mapping[str, int]

    def slots(self, step: int) -> list[Slot]:
        """Returns one slot for every stream whose turn it is."""
        return [(name, size) for name, size in self.batch.items() if step % self.every[name] == 0]

    @property
    def sizes(self) -> dict[str, int]:
        """Samples per slot, by stream."""
        return dict(self.batch)


@dataclass(frozen=True)
class Mixed(Schedule):
    """Every step draws its streams by a rule.

    Attributes:
        rule: The rule.
        names: Streams, in order.
        lengths: Training samples of each stream.
        size: Samples per slot.
        count: Slots per step.
        steps: Steps of the run.
        seed: Seed of the run.
        history: Returns the validation scores of the streams at each evaluation before a step.
    """

    rule: Mixing
    names: Sequence[str]
    lengths: Sequence[int]
    size: int
    count: int
    steps: int
    seed: int
    history: Callable[[int], Sequence[Sequence[float]]] = lambda step: ()

    def probabilities(self, step: int) -> np.ndarray:
        """Returns the probability of every stream in a step."""
        return self.rule.probabilities(self.lengths, step / max(1, self.steps), self.history(step))

    def slots(self, step: int) -> list[Slot]:
        """Returns the drawn slots, streams in order."""
        drawn = draw(self.probabilities(step), self.seed, step, self.count)
        return [(self.names[index], self.size) for index in sorted(drawn)]

    @property
    def sizes(self) -> dict[str, int]:
        """Samples per slot, by stream."""
        return dict.fromkeys(self.names, self.size)


class StreamBatches:
    """Yields the keys of each micro-batch of this rank, from a given step to the last.

    A stream has an order of its own for each pass over it, as in `StepBatches`; the rest that fills no slot is dropped.
    The place in the order is the number of slots that earlier steps have drawn, which is counted again after a resume.

    Args:
        schedule: Which streams a step draws.
        lengths: Training samples by stream.
        steps: Optimiser steps of the whole run.
        seed: Seed of the run.
        start: First step to yield.
        micro: Micro-batches per step.
        rank: This rank.
        world: Number of ranks.
        batches: Independent mini-batches per micro-batch.
        sample_lengths: Length of every sample, for streams whose batches hold samples of similar length.

    Raises:
        SuiteError: A slot cannot be divided evenly, or a stream has fewer samples than a slot.
    """

    def __init__(
        self,
        schedule: Schedule,
        lengths: Mapping[str, int],
        steps: int,
        seed: int,
        *,
        start: int = 0,
        micro: int = 1,
        rank: int = 0,
        world: int = 1,
        batches: int = 1,
        sample_lengths: Mapping[str, np.ndarray] | None = None,
    ):
        parts = micro * batches * world
        for name, size in schedule.sizes.items():
            if size % parts:
                raise SuiteError(
                    f"The samples that a step takes of a stream divide evenly: {name} gives {size}, for {world} "
                    f"device(s) x {micro} micro-batch(es) x {batches} mini-batch(es). Choose a multiple of {parts}."
                )
            if size > lengths[name]:
                raise SuiteError(
                    f"A step draws each sample of a stream at most once: {name} has {lengths[name]} training samples, "
                    f"and a step takes {size}. Take fewer."
                )
        self.schedule, self.lengths, self.steps, self.seed = schedule, dict(lengths), steps, seed
        self.start, self.micro, self.rank, self.world, self.batches = start, micro, rank, world, batches
        self.sample_lengths = sample_lengths or {}
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        # The whole run, also when resuming, as in `StepBatches`.
        return self.steps * self.micro * self.batches

    def repeats(self) -> Iterator[tuple[int, str]]:
        """Yields the steps that see samples of a stream again, each with the stream."""
        used = dict.fromkeys(self.lengths, 0)
        for step in range(self.steps):
            for name, size in self.schedule.slots(step):
                used[name] += 1
                if used[name] * size > self.lengths[name]:
                    yield step, name

    def __iter__(self) -> Iterator[list[Key]]:
        used = dict.fromkeys(self.lengths, 0)
        for step in range(self.steps):
            slots = self.schedule.slots(step)
            if step >= self.start:
                places = dict(used)
                chosen = []
                for name, size in slots:
                    chosen.append(self._slot(name, size, places[name]))
                    places[name] += 1
                yield from self._parts(chosen)
            for name, _ in slots:
                used[name] += 1

    def _slot(self, name: str, size: int, place: int) -> list[Key]:
        """Returns the samples of a stream's slot number ``place``."""
        epoch, within = divmod(place, self.lengths[name] // size)
        known = self._orders.get(name)
        if known is None or known[0] != epoch:
            generator = np.random.default_rng(seed_of("order", name, self.seed, epoch))
            order = generator.permutation(self.lengths[name])
            if name in self.sample_lengths:
                order = by_length(order, self.sample_lengths[name], size, generator)
            known = self._orders[name] = epoch, order
        return [(name, epoch, int(index)) for index in known[1][within * size : (within + 1) * size]]

    def _parts(self, slots: Sequence[Sequence[Key]]) -> Iterator[list[Key]]:
        """Yields this rank's share of every mini-batch."""
        count = self.micro * self.batches
        for part in range(count):
            yield [
                key
                for slot in slots
                for key in slot[part * len(slot) // count : (part + 1) * len(slot) // count][self.rank :: self.world]
            ]


class CollateStreams:
    """Stacks samples of several streams: one plain batch per stream that has any.

    ``idle`` names the tasks of the streams that have none, in the batch and in each of its plain batches.

    Args:
        collates: How the samples of each stream are stacked.
    """

    def __init__(self, collates: Mapping[str, Collate]):
        self.collates = dict(collates)

    def __call__(self, samples: Sequence[tuple[str, Sample]]) -> Batch:
        """Returns the batch of (stream, sample) pairs."""
        by_stream: dict[str, list[Sample]] = {}
        for name, sample in samples:
            by_stream.setdefault(name, []).append(sample)
        idle = [task for name, one in self.collates.items() if name not in by_stream for task in one.tasks]
        found = {name: self.collates[name](some) for name, some in by_stream.items()}
        for batch in found.values():
            batch["idle"] = idle
        return Batch(streams=found, idle=idle)


def unwindowed(data: Any, stream: str) -> Any:
    """Returns the data of a stream.

    Raises:
        SuiteError: It has a window, while streams shuffle all of their samples.
    """
    if data.window:
        raise SuiteError(
            f"A stream of a union shuffles all of its samples. Stream {stream} has a window of {data.window.shards} "
            "shards. Leave window and source out of its options, or train on it alone."
        )
    return data
