"""Run specifications: everything that decides a training, and the identity derived from it. Needs no torch."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mtlbench.errors import MethodError, unknown_name
from mtlbench.runs import shapes


@dataclass(frozen=True)
class RunSpec:
    """One training: one method, one set of tasks, one seed, one resolved configuration.

    Attributes:
        suite: Name of the suite.
        label: Row of the leaderboard; not part of identity.
        seed: Seed of everything random.
        method: ``name``, ``path`` (where its class is), ``version``, ``arguments`` with defaults, ``balancer``.
        tasks: Description of every task of this run, by name.
        data: ``module``, ``version``, ``options``, ``fingerprint``; ``labels`` where some are cut, see
            `mtlbench.data.label_rules`.
        model: Section ``model`` of the suite and the identity of pretrained weights.
        optimiser: Section ``optimiser`` of the suite.
        trainer: What changes the result: steps, effective batch, precision, clipping, evaluation.
        start: The run whose weights it starts from: ``run``, ``hash``, ``related``, ``freeze`` and ``draw``, see
            `mtlbench.training.warm_start`. None for fresh weights; part of the identity only if set.
        sources: Finished runs whose networks the method reads while it trains, by role: ``run`` and ``hash``. Part
            of the identity only if set.
        local: What does not change the result: paths, workers, devices, logging. Recorded, never hashed.
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
    start: Mapping[str, Any] | None = None
    sources: Mapping[str, Mapping[str, str]] | None = None

    def identity(self) -> dict[str, Any]:
        """Return everything that decides the result, as plain JSON values."""
        keys = ("suite", "seed", "method", "tasks", "data", "model", "optimiser", "trainer")
        more = {key: getattr(self, key) for key in ("start", "sources") if getattr(self, key)}
        return json.loads(json.dumps({key: getattr(self, key) for key in keys} | more))

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    @property
    def run_id(self) -> str:
        """``<method>-s<seed>-<hash8>``: name of the run's folder."""
        return f"{self.method['name']}-s{self.seed}-{self.hash[:8]}"

    def with_tasks(self, *names: str) -> RunSpec:
        """Return the same run on some of its tasks, without the label rules of the others.

        Raises:
            MethodError: If it has no such task.
        """
        for name in names:
            if name not in self.tasks:
                raise MethodError(f"{self.label}: " + unknown_name("task", name, self.tasks))
        labels = {task: rule for task, rule in self.data.get("labels", {}).items() if task in names}
        return replace(self, tasks={name: self.tasks[name] for name in names}).with_labels(labels)

    def with_labels(self, labels: Mapping[str, Any]) -> RunSpec:
        """Return the same run with other rules on its training labels, by task; an empty mapping means no rules."""
        data = {key: value for key, value in self.data.items() if key != "labels"}
        return replace(self, data={**data, "labels": dict(labels)} if labels else data)

    def with_method(self, method: Mapping[str, Any]) -> RunSpec:
        """Returns the same run with another method, see `registry.record`; its label is the method's name."""
        return replace(self, method=method, label=method["name"])

    def with_sources(self, **runs: RunSpec) -> RunSpec:
        """Returns the same run, which reads the networks of other runs while it trains, by role."""
        return replace(self, sources={role: {"run": run.run_id, "hash": run.hash} for role, run in runs.items()})

    def to_json(self) -> dict[str, Any]:
        """Returns the record that is stored beside a run."""
        return {**self.identity(), "label": self.label, "local": dict(self.local), "hash": self.hash}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RunSpec:
        """Read what `to_json` wrote.

        Raises:
            TypeError: If keys are missing, others are there, or a value is of another kind.
        """
        if not shapes.SPEC(record):
            raise TypeError("A specification is made of text, a seed and mappings.")
        return cls(**{key: value for key, value in record.items() if key != "hash"})
