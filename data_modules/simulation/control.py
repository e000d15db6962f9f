"""`Control`: imitation of scripted experts in simulated tasks, one stream per task, scored by rollouts."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mtlbench.data import MTLDataModule, Samples
from mtlbench.data.rollouts import Rollout, in_groups
from mtlbench.errors import DataError, SuiteError, unknown_name
from mtlbench.seeding import seed_of
from mtlbench.tasks import Task
from mtlbench.tasks.inputs import VECTORS

from ..union import Union
from .demonstrations import Demonstrations, Expert, Given, Trajectories, record

HELD_BACK = 3
"""Number of training demonstrations for each demonstration of the splits val and test."""


class Control(Union):
    """Simulated tasks with scripted experts. A subclass defines `TASKS`, `open` and `simulator`.

    Every task is a stream of its own: the steps of its demonstrations. Demonstrations of the splits and episodes of the
    rollouts have initial states of their own, which depend on task, split and number alone.

    Args:
        root: Not used unless the subclass says so.
        streams: Tasks that have a stream; none for all.
        demonstrations: Training demonstrations per task; validation and test have a third of that.
        noise: Standard deviation of the noise on the expert's actions, >= 0.
        episodes: Episodes per task in which the trained network acts, for each of the splits val and test.
        watch: Episodes per task in which it acts at each evaluation during training.
        mixing: See `Union`.
        slots: See `Union`.
        tasks: See `MTLDataModule`.
        **common: See `MTLDataModule`.
    """

    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    INPUTS: ClassVar[str] = VECTORS

    def __init__(
        self,
        root: str | None = None,
        *,
        streams: Sequence[str] = (),
        demonstrations: int = 30,
        noise: float = 0.2,
        episodes: int = 20,
        watch: int = 0,
        mixing: Any = None,
        slots: int = 1,
        tasks: Mapping[str, Task] | None = None,
        **common: Any,
    ):
        for name, value, least in (
            ("demonstrations", demonstrations, 1),
            ("episodes", episodes, 1),
            ("watch", watch, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SuiteError(f"data.options.{name} is a whole number from {least}. Found {value!r}.")
        if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < float("inf"):
            raise SuiteError(f"data.options.noise is a finite number from 0. Found {noise!r}.")
        self.demonstrations, self.noise, self.episodes, self.watch = demonstrations, float(noise), episodes, watch
        self._trajectories: dict[tuple[str, str], Trajectories] = {}
        super().__init__(root, streams=self._named(streams), mixing=mixing, slots=slots, tasks=tasks, **common)

    @abstractmethod
    def open(self, task: str) -> Expert:
        """Returns a fresh environment of a task."""

    @abstractmethod
    def simulator(self) -> str:
        """Returns what identifies the simulator and its experts, for the fingerprint."""

    @classmethod
    def tasks_by_stream(cls, streams: Any) -> dict[str, dict[str, Task]]:
        """Returns each task as a stream."""
        return {name: {name: cls.TASKS[name]} for name in cls._named(streams)}

    @classmethod
    def inputs_kind(cls, options: Mapping[str, Any]) -> str:
        """Returns `VECTORS`."""
        return cls.INPUTS

    def fingerprint(self) -> str:
        """Returns a hash of what identifies the simulator."""
        return hashlib.blake2b(self.simulator().encode(), digest_size=8).hexdigest()

    def rollouts(self, split: str, *, final: bool = False) -> list[Rollout]:
        """Returns the episodes of every task."""
        count = self.episodes if final else self.watch
        found: list[Rollout] = []
        for task in self.tasks if split in self.SPLITS[1:] else ():
            seeds = [seed_of("rollout", task, split, number) % 2**31 for number in range(count)]
            found += in_groups(task, seeds, lambda task=task: self.open(task))  # type: ignore[misc]
        return found

    def trajectories(self, task: str, split: str) -> Trajectories:
        """Returns the demonstrations of a task for a split."""
        found = self._trajectories.get((task, split))
        if found is None:
            count = self.demonstrations if split == "train" else max(1, self.demonstrations // HELD_BACK)
            found = self._trajectories[task, split] = self.recorded(task, split, count)
        return found

    def read(self, path: Path) -> Samples:
        """Returns the observations of a file as samples: ``.npy`` (N, F), or rows of numbers in a ``.csv``.

        Raises:
            DataError: The file holds no observations of this length.
        """
        wanted = self.input_sizes()["features"]
        try:
            found = (
                np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path, delimiter=",", ndmin=2)
            )
        except Exception as error:  # Parsers raise errors of their own.
            raise DataError(
                f"Observations are a .npy array, or rows of numbers in a .csv. {path}: {type(error).__name__}: {error}."
            ) from error
        if found.ndim != 2 or found.shape[1] != wanted or not np.isfinite(found).all():
            raise DataError(f"Observations are finite numbers (N, {wanted}). {path} holds {found.dtype} {found.shape}.")
        return Given(path.stem, found)

    def recorded(self, task: str, split: str, count: int) -> Trajectories:
        """Returns newly recorded demonstrations of a task for a split."""
        return self.demonstrated(self.open(task), task, split, count)

    def demonstrated(self, environment: Expert, task: str, split: str, count: int) -> Trajectories:
        """Returns demonstrations recorded in an environment; seeds depend only on task, split and number."""
        return record(
            environment, lambda number: seed_of("demonstration", task, split, number) % 2**31, count, self.noise, task
        )

    def _opened(self, name: str, found: Mapping[str, Task]) -> MTLDataModule:
        tasks = {task: self.tasks[task] for task in found if task in self.tasks}
        return Demonstrations(tasks=tasks, seed=self.seed, load=lambda split: self.trajectories(name, split))

    @classmethod
    def _named(cls, streams: Any) -> dict[str, Mapping[str, Any]]:
        names = list(streams or cls.TASKS)
        for name in names:
            if name not in cls.TASKS:
                raise SuiteError(unknown_name("task in data.options.streams", str(name), cls.TASKS))
        return {name: {} for name in names}
