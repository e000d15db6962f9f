"""A study with equal tuning whose runs are done at once: their scores are a function of their specification."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from mtlbench import suite as suites
from mtlbench.bench.executors.local import LocalExecutor
from mtlbench.bench.scheduler import Bench
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder, read_json
from mtlbench.study.resolve import Local, resolve
from mtlbench.training.finish import identified

DATA = "data.module=data_modules.digits:HeldOutDigits"
BEST_LR = 0.009


def distance(spec: RunSpec) -> float:
    """Returns how far the learning rate is from the best one, in decades."""
    return abs(math.log10(spec.optimiser["lr"] / BEST_LR))


class Scored:
    """An executor whose runs end at once. It stops the bench after ``limit`` runs, as a kill would.

    Args:
        root: ``results/<suite>``.
        score: Validation score of a run, higher is better.
        test: Score on the reported split.
        fails: Whether a run fails.
        limit: Runs that it starts.
    """

    def __init__(
        self,
        root: Path,
        score: Callable[[RunSpec], float],
        test: Callable[[RunSpec], float] = lambda spec: 0.5,
        fails: Callable[[RunSpec], bool] = lambda spec: False,
        limit: int = 10**6,
    ):
        self.root, self.score, self.test, self.fails, self.limit = root, score, test, fails, limit
        self.running: dict[str, RunSpec] = {}
        self.started: list[RunSpec] = []
        self.free = True

    def start(self, spec: RunSpec) -> None:
        if len(self.started) == self.limit:
            raise KeyboardInterrupt
        self.started.append(spec)
        assert RunFolder(self.root, spec.run_id).claim(spec)
        self.running[spec.run_id] = spec

    def wait(self, seconds: float) -> None:
        """Nothing runs."""

    def ended(self) -> list[tuple[RunSpec, int]]:
        ended, self.running = list(self.running.values()), {}
        return [(spec, self._end(spec)) for spec in ended]

    def _end(self, spec: RunSpec) -> int:
        folder = RunFolder(self.root, spec.run_id)
        if self.fails(spec):
            folder.fail({"type": "DivergedError", "message": "the loss became NaN"})
            return 1
        folder.finish(
            {
                **identified(spec),
                "split": "test",
                "steps": spec.trainer["steps"],
                "scores": _scores(spec, self.test(spec)),
                "validation": _scores(spec, self.score(spec)),
                "cost": {"train_seconds": float(spec.trainer["steps"]), "seconds_per_step": 1.0, "device": "cpu"},
            }
        )
        return 0

    def stop(self) -> None:
        """Nothing runs."""


def _scores(spec: RunSpec, gain: float) -> dict[str, dict[str, float]]:
    """Returns scores that are better by ``gain`` times 100 % than 1, whatever their direction."""
    protocols = {task: about["protocols"][0] for task, about in spec.tasks.items()}
    return {t: {p["id"]: 1 + gain if p["higher_is_better"] else 1 - gain} for t, p in protocols.items()}


def study_of(*overrides: str, methods: str = "[single_task, uniform, dwa]") -> Any:
    """Returns a tuned study of digits with a test split."""
    asked = [DATA, f"methods={methods}", "seeds=[0, 1]", "search.trials=6", *overrides]
    return resolve(suites.load("digits", asked), Local(), [])


def searched(root: Path, study: Any, score: Callable[[RunSpec], float], *, retry: bool = False, **options: Any) -> Any:
    """Runs a study until it ends or is stopped; returns its executor."""
    root.mkdir(parents=True, exist_ok=True)
    executor = Scored(root, score, **options)
    bench = Bench(root, study, cast(LocalExecutor, executor), retry=retry)
    try:
        bench.run()
    except KeyboardInterrupt:
        for run in executor.running:  # Killed: the next bench finds them as they are.
            RunFolder(root, run).release()
    return executor


def rows_of(root: Path, label: str) -> list[dict[str, Any]]:
    """Returns the entries of a row in the study's record."""
    return [row for row in (read_json(root / "study.json") or {})["rows"] if row["label"] == label]


def trials_of(root: Path, label: str) -> list[dict[str, Any]]:
    """Returns the trials of a row."""
    return rows_of(root, label)[0]["record"]["search"]["trials"]
