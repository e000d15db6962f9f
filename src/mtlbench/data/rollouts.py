"""Rollouts: episodes in which a trained network acts in a simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtlbench.errors import DataError

Array = NDArray[Any]

Policy = Callable[[Array], Array]
"""Returns actions (B, A) for observations (B, F)."""


class Environment(Protocol):
    """A simulated task, one episode at a time.

    Attributes:
        horizon: Steps after which an episode ends unsolved.
    """

    horizon: int

    def reset(self, seed: int) -> Array:
        """Begins an episode, whose initial state depends on the seed alone; returns an observation (F,)."""

    def step(self, action: Array) -> tuple[Array, bool]:
        """Applies an action (A,); returns an observation (F,) and whether the task is solved."""


@dataclass(frozen=True)
class Rollout:
    """A few episodes of one task that run side by side.

    Every forward pass holds all of them from the first step to the last, finished ones too: the same rows in the same
    order give the same bits, on however many ranks the rollouts of a split are spread.

    Attributes:
        task: Name of the task.
        episodes: Number and seed of every episode. Numbers appear in messages.
        open: Returns a fresh environment.
    """

    task: str
    episodes: Sequence[tuple[int, int]]
    open: Callable[[], Environment]

    def play(self, policy: Policy) -> int:
        """Returns how many episodes a policy solves.

        Raises:
            DataError: The simulator fails or the policy gives no numbers; the message names task, episode and step.
        """
        worlds = [self.open() for _ in self.episodes]
        seen = [
            self._guarded(place, 0, partial(world.reset, seed))
            for place, (world, (_, seed)) in enumerate(zip(worlds, self.episodes, strict=True))
        ]
        running, solved = set(range(len(worlds))), 0
        for step in range(1, worlds[0].horizon + 1):
            actions = np.asarray(policy(np.stack(seen)), dtype=np.float64)
            for place in sorted(running):
                action = actions[place]
                if not np.isfinite(action).all():
                    raise self._error(place, step, f"the network's action is {action.tolist()}")
                seen[place], done = self._guarded(place, step, partial(worlds[place].step, action))
                if done:
                    running.remove(place)
                    solved += 1
            if not running:
                break
        return solved

    def _guarded(self, place: int, step: int, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:  # Simulators raise errors of their own.
            raise self._error(place, step, f"{type(error).__name__}: {error}") from error

    def _error(self, place: int, step: int, fact: str) -> DataError:
        return DataError(
            f"A rollout takes finite actions and runs to its end. Task {self.task}, episode {self.episodes[place][0]}, "
            f"step {step}: {fact}. Repair the simulator or lower optimiser.lr; the bench with --retry (RETRY=1) then "
            "goes on from the last checkpoint."
        )


def in_groups(task: str, seeds: Sequence[int], open_one: Callable[[], Environment], size: int = 10) -> list[Rollout]:
    """Returns rollouts that hold every episode of a task once.

    Args:
        task: Name of the task.
        seeds: One per episode.
        open_one: Returns a fresh environment of the task.
        size: Most episodes in one rollout. The grouping must not depend on the number of ranks.
    """
    numbered = list(enumerate(seeds))
    return [Rollout(task, numbered[start : start + size], open_one) for start in range(0, len(numbered), size)]
