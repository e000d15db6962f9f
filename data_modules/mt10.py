"""`MT10`: the ten manipulation tasks of Meta-World MT10, learned by imitating its scripted experts."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
from collections.abc import Mapping
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mtlbench.data import Samples
from mtlbench.data.rollouts import Array
from mtlbench.errors import DataError, StoreError, SuiteError, unknown_name
from mtlbench.runs.store import write_bytes
from mtlbench.tasks import Task
from mtlbench.tasks.control import Action

from .dense.cache import folder_of_caches
from .simulation.control import Control
from .simulation.demonstrations import Expert, Given, Trajectories

_LOG = logging.getLogger(__name__)

NAMES = (
    "reach", "push", "pick_place", "door_open", "drawer_open", "drawer_close", "button_press_topdown",
    "peg_insert_side", "window_open", "window_close",
)  # fmt: skip
PACKAGES = ("metaworld", "mujoco")
GOALS = ("shown", "hidden")
GOAL = slice(36, 39)
"""Where the position of the goal is in an observation."""

LEAST_STD = 0.01
"""Smallest standard deviation that an entry is divided by, so that entries that hardly change do not become noise."""


class MT10(Control):
    """Ten tasks of a robot arm in Meta-World. Observations are (39,); actions (4,) move hand and gripper.

    An observation holds hand, grip and objects now and a step before, and the position of the goal. Its entries are
    standardised by the training demonstrations of all streams. Every episode draws its initial state and its goal.

    Demonstrations are simulated once and kept in the folder of caches (``MTLBENCH_CACHE``), by the versions of the
    simulator. Install it: ``pip install "mtlbench[control]"``.

    Args:
        root: Not used: demonstrations are simulated.
        goal: ``shown``, or ``hidden``: the network sees zeros in place of the goal. The expert always sees it.
        horizon: Steps after which an episode ends unsolved, 1..500. Experts need fewer than 100 in most episodes.
        **options: See `Control`.
    """

    VERSION: ClassVar[int] = 1
    TASKS: ClassVar[Mapping[str, Task]] = {name: Action(name, size=4) for name in NAMES}

    def __init__(self, root: str | None = None, *, goal: str = "shown", horizon: int = 200, **options: Any):
        if goal not in GOALS:
            raise SuiteError(unknown_name("value of data.options.goal", str(goal), GOALS))
        if isinstance(horizon, bool) or not isinstance(horizon, int) or not 1 <= horizon <= 500:
            raise SuiteError(f"data.options.horizon is a whole number from 1 to 500. Found {horizon!r}.")
        self.goal, self.horizon = goal, horizon
        super().__init__(root, **options)

    def missing(self) -> list[str]:
        """Returns a line if the simulator is not installed."""
        absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if absent:
            verb = "is" if len(absent) == 1 else "are"
            return [f'MT10 needs {" and ".join(absent)}, which {verb} not installed: pip install "mtlbench[control]".']
        return super().missing()

    def simulator(self) -> str:
        """Returns the versions of the packages."""
        return " ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)

    def open(self, task: str) -> Expert:
        """Returns an environment with standardised observations."""
        return _Standardised(Arm(task, self.horizon), *self._scale, hidden=self.goal == "hidden")

    def trajectories(self, task: str, split: str) -> Trajectories:
        """Returns the demonstrations of a task for a split, with standardised observations."""
        found = super().trajectories(task, split)
        mean, std = self._scale
        return Trajectories(_seen(found.observations, mean, std, self.goal == "hidden"), found.actions, found.first)

    def read(self, path: Path) -> Samples:
        """Returns the observations of a file as samples; see `Control.read`."""
        found = super().read(path)
        mean, std = self._scale
        seen = np.array([found[index]["inputs"].numpy() for index in range(len(found))])
        return Given(path.stem, _seen(seen, mean, std, self.goal == "hidden"))

    @cached_property
    def _scale(self) -> tuple[Array, Array]:
        """Mean and standard deviation (39,) of the training demonstrations of all streams, whichever a run has."""
        every = [Control.trajectories(self, task, "train").observations for task in self.given]
        whole = np.concatenate(every).astype(np.float64)
        return whole.mean(0), np.maximum(whole.std(0), LEAST_STD)

    def recorded(self, task: str, split: str, count: int) -> Trajectories:
        """Returns demonstrations with the simulator's own observations, from the cache if it has them."""
        if absent := self.missing():
            raise DataError(absent[0])
        key = f"{self.VERSION} {self.simulator()} {task} {split} {count} {self.noise} {self.horizon}"
        folder = folder_of_caches()
        path = folder / f"mt10-{hashlib.blake2b(key.encode(), digest_size=10).hexdigest()}.npz" if folder else None
        return (path and _stored(path)) or _kept(path, self.demonstrated(Arm(task, self.horizon), task, split, count))


class Arm:
    """One task of the simulator, with the goal in its observations.

    Args:
        task: One of `NAMES`.
        horizon: Steps after which an episode ends unsolved.
    """

    def __init__(self, task: str, horizon: int):
        import metaworld
        from metaworld.policies import ENV_POLICY_MAP

        name = f"{task.replace('_', '-')}-v3"
        self.horizon = horizon
        self.arm: Any = metaworld.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{name}-goal-observable"](seed=0)
        # The class draws one initial state when it is built and keeps it; from here on, seeds decide.
        self.arm._freeze_rand_vec, self.arm.seeded_rand_vec = False, True
        self.policy: Any = ENV_POLICY_MAP[name]()
        self.seen: Array = np.zeros(0)

    def reset(self, seed: int) -> Array:
        """Begins an episode; returns an observation (39,)."""
        self.arm.seed(seed)
        self.seen = np.asarray(self.arm.reset()[0], np.float64)
        return self.seen

    def step(self, action: Array) -> tuple[Array, bool]:
        """Moves hand and gripper; returns an observation (39,) and whether the task is solved."""
        seen, _, _, _, known = self.arm.step(np.clip(action, -1, 1).astype(np.float32))
        self.seen = np.asarray(seen, np.float64)
        return self.seen, bool(known["success"])

    def expert(self) -> Array:
        """Returns the scripted expert's action (4,), clipped to the range that the arm accepts."""
        return np.clip(np.asarray(self.policy.get_action(self.seen), np.float64), -1, 1)


class _Standardised:
    """An arm as a network sees it."""

    def __init__(self, arm: Arm, mean: Array, std: Array, *, hidden: bool):
        self.arm, self.mean, self.std, self.hidden, self.horizon = arm, mean, std, hidden, arm.horizon

    def reset(self, seed: int) -> Array:
        return _seen(self.arm.reset(seed), self.mean, self.std, self.hidden)

    def step(self, action: Array) -> tuple[Array, bool]:
        seen, solved = self.arm.step(action)
        return _seen(seen, self.mean, self.std, self.hidden), solved

    def expert(self) -> Array:
        return self.arm.expert()


def _seen(observations: Array, mean: Array, std: Array, hidden: bool) -> Array:
    """Returns standardised observations (..., 39); a hidden goal is set to zeros."""
    found = (observations - mean) / std
    if hidden:
        found[..., GOAL] = 0.0
    return found.astype(observations.dtype)


def _stored(path: Path) -> Trajectories | None:
    """Returns the demonstrations of a file; None if it is absent or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return Trajectories(file["observations"], file["actions"], file["first"])
    except Exception:  # A damaged archive raises many things.
        return None


def _kept(path: Path | None, found: Trajectories) -> Trajectories:
    """Writes demonstrations to the cache if there is one, and returns them."""
    archive = io.BytesIO()
    np.savez_compressed(archive, observations=found.observations, actions=found.actions, first=found.first)
    try:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, archive.getvalue())
    except (OSError, StoreError) as error:
        _LOG.warning("Demonstrations are simulated each time, since %s cannot be written: %s", path, error)
    return found
