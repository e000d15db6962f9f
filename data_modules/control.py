"""`PointMass` and `Sequences`: tasks of a point mass in the plane, learned by imitating scripted experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mtlbench.errors import SuiteError, unknown_name
from mtlbench.tasks import Task
from mtlbench.tasks.control import Action

from .simulation.control import Control
from .simulation.demonstrations import Expert
from .simulation.point_mass import RULES, VERSION, World


class PointMass(Control):
    """Eight tasks of a point mass, computed without a download.

    They are ``reach``, ``mirror``, ``dock``, ``visit``, ``carry``, ``avoid``, ``gate`` and ``push``. All observations
    are vectors of 11 numbers with the same meaning, and all actions are vectors of 2; nothing in an observation names
    the task.

    Args:
        root: Not used: demonstrations are computed.
        **options: See `Control`.
    """

    VERSION: ClassVar[int] = 1
    TASKS: ClassVar[Mapping[str, Task]] = {name: Action(name, size=2) for name in RULES}

    def open(self, task: str) -> Expert:
        """Returns a world with the rule of the task."""
        return World([task])

    def simulator(self) -> str:
        """Returns the version of the world."""
        return f"point mass {VERSION}"


SEQUENCES: Mapping[str, tuple[str, ...]] = {
    "patrol": ("reach", "reach", "reach"),
    "deliver": ("carry", "reach"),
    "relay": ("carry", "carry"),
    "tidy": ("push", "reach"),
}
"""Tasks of several steps: a rule for each goal."""

CONDITIONINGS = ("next", "all")


class Sequences(Control):
    """Tasks of several steps, each with a goal of its own: ``patrol``, ``deliver``, ``relay`` and ``tidy``.

    An observation always shows all goals in their order and the share of goals reached so far.

    Args:
        root: Not used: demonstrations are computed.
        conditioning: ``next``: the goal of the next step is part of the input on its own. ``all``: zeros are in its
            place, so that the network must find it among the goals.
        **options: See `Control`.
    """

    VERSION: ClassVar[int] = 1
    TASKS: ClassVar[Mapping[str, Task]] = {name: Action(name, size=2) for name in SEQUENCES}

    def __init__(self, root: str | None = None, *, conditioning: str = "next", **options: Any):
        if conditioning not in CONDITIONINGS:
            raise SuiteError(unknown_name("value of data.options.conditioning", str(conditioning), CONDITIONINGS))
        self.conditioning = conditioning
        super().__init__(root, **options)

    def open(self, task: str) -> Expert:
        """Returns a world with the rules of the task."""
        slots = max(map(len, SEQUENCES.values()))
        return World(SEQUENCES[task], slots=slots, following=self.conditioning == "next")

    def simulator(self) -> str:
        """Returns the version of the world."""
        return f"point mass {VERSION}"
