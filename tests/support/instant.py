"""A finished study of ``digits`` within a second: its runs are written down instead of trained."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtlbench import suite as suites
from mtlbench.bench.executors.base import Executor
from mtlbench.bench.scheduler import Bench
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder, write_json
from mtlbench.study import resolve as studies
from mtlbench.study.resolve import Study
from mtlbench.training import checkpoint
from mtlbench.training.finish import identified
from tests.support.command_line import SMALL

OVERRIDES = (*SMALL, "trainer.steps=4", "methods=[single_task, uniform]")
FILES = ("final.ckpt", "summary.json", "examples.npz")


class Instant(Executor):
    """Ends every run as soon as it was started, with scores that depend on its method."""

    def __init__(self, root: Path):
        self.root, self.started = root, []

    @property
    def free(self) -> bool:
        return True

    @property
    def running(self) -> list[str]:
        return [spec.run_id for spec in self.started]

    def start(self, spec: RunSpec) -> None:
        finish(self.root, spec)
        self.started.append(spec)

    def ended(self) -> Iterator[tuple[RunSpec, int]]:
        while self.started:
            yield self.started.pop(), 0

    def stop(self) -> None:
        self.started.clear()


def resolved(*more: str) -> Study:
    """Returns the study of the suite."""
    return studies.resolve(suites.load("digits", (*OVERRIDES, *more)), studies.Local(), [*OVERRIDES, *more])


def finished(results: Path, study: Study) -> Path:
    """Writes a whole results folder of a study and returns ``results/digits``."""
    root = results / "digits"
    root.mkdir(parents=True)
    Bench(root, copy.deepcopy(study), Instant(root)).run()
    return root


def finish(root: Path, spec: RunSpec) -> None:
    """Leaves behind what a training leaves behind."""
    folder = RunFolder(root, spec.run_id)
    assert folder.claim(spec)
    checkpoint.save({"step": 4, "state_dict": {}}, folder.path / "final.ckpt")
    write_json(folder.path / "summary.json", _summary(spec))
    (folder.path / "examples.npz").write_bytes(b"no pictures")
    rows = [{"step": step, **{f"loss/{task}": 1 / step for task in spec.tasks}} for step in range(1, 5)]
    (folder.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.finish(_result(spec), FILES)


def _summary(spec: RunSpec) -> dict[str, Any]:
    if spec.label == "single_task":
        return {}
    table = [[0.25, 0.75]] * len(spec.tasks)
    return {"experts": {"tasks": list(spec.tasks), "layers": {"block1.mlp": {"probability": table, "load": table}}}}


def _result(spec: RunSpec) -> dict[str, Any]:
    better = 1.25 if spec.label == "uniform" else 1.0
    scores = {
        task: {each["id"]: 0.5078125 * better ** (1 if each["higher_is_better"] else -1) for each in about["protocols"]}
        for task, about in spec.tasks.items()
    }
    cost = {"seconds_per_step": 0.0625, "train_seconds": 0.25, "parameters": 1000, "device": "cpu", "threads": 1}
    return {
        **identified(spec),
        "split": "val",
        "steps": 4,
        "scores": scores,
        "cost": {**cost, "peak_memory_gib": 0.5, "devices": 1, "flops": 1e6},
        "validation": None,
    }
