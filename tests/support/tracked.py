"""Miniatures of shipped suites, trained in this process with W&B offline, and what W&B's own command reads back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.util import get_core_path

from mtlbench import suite as suites
from mtlbench.bench.executors.base import Executor
from mtlbench.bench.scheduler import Bench
from mtlbench.errors import ExitCode
from mtlbench.runs.spec import RunSpec
from mtlbench.study import resolve as studies
from mtlbench.training.worker import Seat, work

TINY = (
    "floor=false",
    "model.encoder_options.embed_dim=16",
    "model.encoder_options.depth=2",
    "model.encoder_options.num_heads=2",
    "model.decoder_channels=8",
    "trainer.steps=2",
    "trainer.batch_size=2",
    "trainer.log_every=1",
    "trainer.diagnose_every=1",
    "trainer.evaluate_every=1",
    "trainer.examples=1",
    "optimiser.warmup=1",
)
SCENES = (
    "data.options.size=16",
    "data.options.train=4",
    "data.options.val=2",
    "data.options.test=2",
    "model.image_size=[16, 16]",
    "model.weights=null",
    "tasks={semseg: {}, depth: {}}",
    "seeds=[0]",
    "named=[]",
)
MINIATURES: dict[str, tuple[str, ...]] = {
    "scenes": ("methods=[single_task, pcgrad]",),
    "experts": ("methods=[single_task, mod_squad]",),
    "grouping": ("methods=[single_task, {name: tag, every: 1}]",),
    "video": ("methods=[single_task, computation_sharing]", "data.options.frames=2"),
}
"""Overrides that make a shipped suite small."""


class Here(Executor):
    """Trains one run after the other in this process."""

    free = True

    def __init__(self, root: Path):
        self.root = root
        self.done: list[RunSpec] = []

    @property
    def running(self) -> list[str]:
        return [spec.run_id for spec in self.done]

    def start(self, spec: RunSpec) -> None:
        assert work(str(self.root), spec.to_json(), Seat()) == ExitCode.DONE
        self.done.append(spec)

    def ended(self) -> Iterator[tuple[RunSpec, int]]:
        while self.done:
            yield self.done.pop(), 0

    def stop(self) -> None:
        self.done.clear()


def benched(results: Path, name: str, *more: str) -> Path:
    """Trains the miniature of a suite and returns ``results/<suite>``."""
    overrides = [*TINY, *SCENES, *MINIATURES[name], *more]
    root = results / name
    root.mkdir(parents=True)
    study = studies.resolve(suites.load(name, overrides), studies.Local(results=str(root)), overrides)
    Bench(root, study, Here(root)).run()
    return root


def records(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns all records of an offline W&B run, by their type."""
    # What `wandb leet inspect --json` runs, without the second that its Python part takes to start.
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json"]
    command += ["--run-file", str(path), str(path.parent)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        record = json.loads(line)
        found.setdefault(record["type"], []).append(record[record["type"]])
    return found


def read_back(root: Path) -> tuple[set[str], set[str], set[str], dict[str, dict[str, Any]]]:
    """Returns what W&B has of a study: names over steps, names at the end, ids of runs, and their configurations."""
    history: set[str] = set()
    summary: set[str] = set()
    config: dict[str, dict[str, Any]] = {}
    for path in root.rglob("*.wandb"):
        found = records(path)
        (run,) = found["run"]
        config[run["run_id"]] = run["config"]["update"]
        rows = {key for record in found.get("history", ()) for key in record["item"]}
        history |= rows
        # A tool's summary has the last value of everything that was logged.
        summary |= rows | {key for record in found.get("summary", ()) for key in record.get("update", ())}
    plain = {key.partition("._type")[0] for key in history | summary}
    return history, summary | plain, set(config), config
