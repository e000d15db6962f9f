"""Run specifications and plans: which trainings a method needs, and how one decides the next. Free of torch.

A plan is a generator. It yields a list of run specifications, receives their results (a list in the same order),
and returns which run serves which task. Finished runs answer at once from the store, so that resuming a study is
replaying its plans.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Result = dict[str, Any]
Serving = dict[str, str]
Plan = Generator[list["RunSpec"], list[Result], Serving]


@dataclass(frozen=True)
class RunSpec:
    """One training: one method, one set of tasks, one seed, one resolved configuration.

    Attributes:
        suite: Name of the suite.
        label: Row of the leaderboard; not part of identity.
        seed: Seed of everything random.
        method: ``name``, ``path`` (where its class is), ``version``, ``arguments`` with defaults, ``balancer``.
        tasks: Description of every task of this run, by name.
        data: ``module``, ``version``, ``options``, ``fingerprint``.
        model: Section ``model`` of the suite and the identity of pretrained weights.
        optimiser: Section ``optimiser`` of the suite.
        trainer: What changes the result: steps, effective batch, precision, clipping, evaluation.
        local: What does not: paths, workers, devices, logging. Recorded, never hashed.
    """

    suite: str
    label: str
    seed: int
    method: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    optimiser: Mapping[str, Any]
    trainer: Mapping[str, Any]
    local: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Returns all that decides the result, as plain JSON values."""
        keys = ("suite", "seed", "method", "tasks", "data", "model", "optimiser", "trainer")
        return json.loads(json.dumps({key: getattr(self, key) for key in keys}))

    @property
    def hash(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    @property
    def run_id(self) -> str:
        """``<method>-s<seed>-<hash8>``: name of the run's folder."""
        return f"{self.method['name']}-s{self.seed}-{self.hash[:8]}"

    def with_tasks(self, *names: str) -> RunSpec:
        """Returns the same run on some of its tasks."""
        return replace(self, tasks={name: self.tasks[name] for name in names})

    def to_json(self) -> dict[str, Any]:
        """Returns the record that is stored beside a run."""
        return {**self.identity(), "label": self.label, "local": dict(self.local), "hash": self.hash}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RunSpec:
        """Reads what `to_json` wrote."""
        return cls(**{key: value for key, value in record.items() if key != "hash"})


def one_run(spec: RunSpec) -> Plan:
    """The plan of most methods: one run on all tasks, which serves them all."""
    yield [spec]
    return dict.fromkeys(spec.tasks, spec.run_id)
