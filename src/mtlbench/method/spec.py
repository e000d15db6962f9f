"""`MethodSpec`: what a method is given to build itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mtlbench.suite import OptimiserSection
from mtlbench.tasks import Task

DEFAULT_OPTIMISER = {**asdict(OptimiserSection()), "schedule": "constant"}
"""A suite's defaults with a constant rate: a method built by hand has no number of steps to decay over."""


@dataclass(frozen=True)
class MethodSpec:
    """What every method is given.

    Attributes:
        tasks: Tasks of the run by name; their order is the order of every (T,) tensor.
        model: Section ``model`` of the suite.
        optimiser: Section ``optimiser`` of the suite.
        steps: Optimiser steps of the run.
        steps_per_epoch: Optimiser steps in one pass over the training data.
        seed: Seed of the run.
        diagnose_every: Steps between measurements of gradient conflict; 0 for none.
        surgery: How rows are kept where a rule needs only their Gramian: ``"plain"`` all of them, ``"light"`` a chunk
            of parameters at a time, for about twice the time; ``"auto"`` light above `update.LIGHT_ABOVE` bytes.
    """

    tasks: Mapping[str, Task]
    model: Mapping[str, Any] = field(default_factory=dict)
    optimiser: Mapping[str, Any] = field(default_factory=lambda: dict(DEFAULT_OPTIMISER))
    steps: int = 1
    steps_per_epoch: int = 1
    seed: int = 0
    diagnose_every: int = 0
    surgery: str = "auto"
