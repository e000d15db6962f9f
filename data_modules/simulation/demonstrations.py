"""Demonstrations: what a scripted expert does in a simulated task, recorded with noise on its actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from mtlbench.data import MTLDataModule, Sample, Samples
from mtlbench.data.rollouts import Array, Environment
from mtlbench.errors import DataError
from mtlbench.seeding import seed_of
from mtlbench.tasks import Task
from mtlbench.tasks.inputs import VECTORS

ATTEMPTS = 10
"""Episodes tried for each demonstration that is kept."""


class Expert(Environment, Protocol):
    """An environment with a scripted expert."""

    def expert(self) -> Array:
        """Returns the expert's action (A,) in the present state."""


@dataclass(frozen=True)
class Trajectories:
    """Demonstrations of one task, one after the other.

    Attributes:
        observations: float32 (N, F).
        actions: float32 (N, A), what the expert wanted, without noise.
        first: (N,) bool, whether a step begins a demonstration.
    """

    observations: Array
    actions: Array
    first: Array


def record(environment: Expert, seeds: Callable[[int], int], count: int, noise: float, name: str) -> Trajectories:
    """Records demonstrations in which the expert solves the task although noise is added to its actions.

    The noise leads it into states from which a network, too, must recover; the label is the action without noise.

    Args:
        environment: The task.
        seeds: Returns the seed of an attempt by its number.
        count: Number of demonstrations.
        noise: Standard deviation of the noise, in units of the action.
        name: Of the task, for messages.

    Raises:
        DataError: The expert solves the task too rarely.
    """
    observations: list[Array] = []
    actions: list[Array] = []
    first: list[bool] = []
    kept = 0
    for attempt in range(ATTEMPTS * count):
        if kept == count:
            break
        seed = seeds(attempt)
        steps = _attempt(environment, seed, noise, np.random.default_rng(seed_of("noise", seed)))
        if steps:
            kept += 1
            observations += [seen for seen, _ in steps]
            actions += [action for _, action in steps]
            first += [place == 0 for place in range(len(steps))]
    if kept < count:
        raise DataError(
            f"Demonstrations are episodes that the expert solves. {name}: {kept} of {ATTEMPTS * count} with noise "
            f"{noise:g}, and {count} are needed. Lower the option noise."
        )
    return Trajectories(np.array(observations, np.float32), np.array(actions, np.float32), np.array(first))


def _attempt(
    environment: Expert, seed: int, noise: float, generator: np.random.Generator
) -> list[tuple[Array, Array]] | None:
    """Returns observations and the expert's actions in an episode; None if it ends unsolved."""
    seen, steps = environment.reset(seed), []
    for _ in range(environment.horizon):
        action = environment.expert()
        steps.append((seen, action))
        seen, solved = environment.step(action + noise * generator.standard_normal(len(action)))
        if solved:
            return steps
    return None


class Demonstrations(MTLDataModule):
    """The demonstrations of one task as samples: an observation, the expert's action, the previous observation.

    Args:
        root: Not used.
        tasks: The task.
        load: Returns the trajectories of a split.
        **common: See `MTLDataModule`.
    """

    TASKS: ClassVar[Mapping[str, Task]] = {}
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    INPUTS: ClassVar[str] = VECTORS

    def __init__(
        self,
        root: str | None = None,
        *,
        tasks: Mapping[str, Task],
        load: Callable[[str], Trajectories],
        **common: Any,
    ):
        super().__init__(root, tasks=tasks, **common)
        self.load = load

    def samples(self, split: str) -> Samples:
        """Returns the steps of the demonstrations of a split."""
        return Steps(next(iter(self.tasks)), split, self.load(split))

    def input_sizes(self) -> dict[str, int]:
        """Returns the length of an observation."""
        return {"features": self.load("train").observations.shape[1]}


class Steps:
    """Steps of demonstrations as samples.

    Args:
        task: Name of the task.
        split: Name of the split.
        found: The demonstrations.
    """

    def __init__(self, task: str, split: str, found: Trajectories):
        self.task, self.split = task, split
        self.observations, self.actions = torch.from_numpy(found.observations), torch.from_numpy(found.actions)
        self.before = np.where(found.first, np.arange(len(found.first)), np.arange(len(found.first)) - 1).tolist()

    def __len__(self) -> int:
        return len(self.before)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"Steps are numbered from 0 to {len(self) - 1}. Found {index}.")
        return {
            "inputs": self.observations[index],
            "previous": self.observations[self.before[index]],
            "targets": {self.task: self.actions[index]},
            "id": f"{self.split}-{self.task}-{index}",
        }


class Given:
    """Observations without actions, as samples, for predictions.

    Args:
        name: Of the file.
        observations: (N, F).
    """

    def __init__(self, name: str, observations: Any):
        self.name, self.observations = name, torch.from_numpy(np.asarray(observations, np.float32))

    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, index: int) -> Sample:
        return {"inputs": self.observations[index], "targets": {}, "id": f"{self.name}-{index}"}
