"""Runs the commands of mtlbench for tests, in this process or another, and reads the files they write."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlbench import cli
from mtlbench import suite as suites
from mtlbench.bench.executors.local import LocalExecutor
from mtlbench.runs.liveness import born
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder, read_json
from mtlbench.study import resolve as studies
from mtlbench.training.loggers import read_rows
from tests.support.warm import Command

SMALL = (
    "floor=false",
    "trainer.batch_size=8",
    "trainer.log_every=1",
    "data.options.train=64",
    "data.options.val=16",
    "model.encoder=vit_tiny_patch16_224",
    "model.encoder_options={patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}",
    "model.upsampling=bilinear",
    "model.decoder_channels=8",
)
"""Overrides for a small run of ``digits``: 8 steps per epoch, a tiny network, one logged row per step, no floor."""


@dataclass(frozen=True)
class Answer:
    """Output and exit code of a command."""

    code: int
    text: str


def mtlbench(folder: Path, *words: str) -> Answer:
    """Runs a command in this process, which has imported torch already, with ``folder`` as the current one."""
    text = io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    places, known = list(sys.path), set(sys.modules)
    with contextlib.chdir(folder) if sys.version_info >= (3, 11) else _chdir(folder):
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            try:
                code = cli.main(words)
            except SystemExit as end:
                code = int(end.code or 0)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    # The next command must not find modules that this one imported from its folder.
    sys.path[:] = places
    for name in sys.modules.keys() - known:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]
    return Answer(code, text.getvalue())


@contextlib.contextmanager
def _chdir(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def launch(folder: Path, *words: str) -> Command:
    """Starts a command in a new process group, with one thread."""
    return Command(folder, words, {"OMP_NUM_THREADS": "1"})


def ended(command: Command, seconds: float = 120) -> Answer:
    """Waits for a command."""
    return Answer(*command.ended(seconds))


def wait_for(condition: Callable[[], Any], seconds: float = 90, every: float = 0.002) -> Any:
    """Polls until a condition holds, and returns it."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found = condition()
        if found:
            return found
        time.sleep(every)
    raise AssertionError(f"nothing within {seconds} s")


def family(pid: int) -> list[int]:
    """Returns a process and all that descend from it."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *(member for child in children for member in family(int(child)))]
    return [pid]


def kill(*pids: int) -> None:
    """Sends SIGKILL."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def started(*processes: Any) -> Iterator[None]:
    """Starts processes of multiprocessing, and ends those that are left: pytest would wait for them indefinitely."""
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join(10)


def gone(pids: list[int]) -> bool:
    """Returns whether all these processes have ended."""
    return not any(born(pid) for pid in pids)


def step(run: RunFolder) -> int:
    """Returns the last step that a run has recorded."""
    rows = read_rows(run.path / "metrics.jsonl")
    return rows[-1]["step"] if rows else 0


def specs(*overrides: str, suite: str = "digits") -> list[RunSpec]:
    """Returns the runs of a suite, one per method and seed."""
    return studies.resolve(suites.load(suite, [*overrides, "floor=false"]), studies.Local(), []).members


def executor(folder: Path) -> LocalExecutor:
    """Returns the bench's executor with one run at a time, in one thread."""
    return LocalExecutor(folder, jobs=1, devices=1, threads=1)


def run_to_end(folder: Path, spec: RunSpec) -> RunFolder:
    """Runs, or resumes, in a forked process."""
    runner = executor(folder)
    runner.start(spec)
    [(_, code)] = wait_for(lambda: list(runner.ended()), every=0.02)
    run = RunFolder(folder, spec.run_id)
    assert code == 0, (folder / "logs" / f"{spec.run_id}.log").read_text()
    return run


def outcome(run: RunFolder) -> dict[str, Any]:
    """Returns what must not depend on interruptions: weights, optimiser, scores, and every row of the metrics."""
    result = run.result() or {}
    keys = ("weights_sha256", "optimiser_sha256", "scores", "steps", "conflict_share", "threads")
    return {**{key: result[key] for key in keys}, "rows": read_rows(run.path / "metrics.jsonl")}


def runs_of(folder: Path, suite: str = "digits") -> dict[str, RunFolder]:
    """Returns the runs of a suite's current study below ``results``, by label; the last one of each."""
    root = folder / "results" / suite
    study = read_json(root / "study.json") or {}
    return {row["label"]: RunFolder(root, run_id) for row in study["rows"] for run_id in row["runs"]}


def write_suite(folder: Path, name: str, text: str) -> str:
    """Writes a suite file and returns its name."""
    (folder / f"{name}.yaml").write_text(text)
    return f"{name}.yaml"


def as_json(value: Any) -> str:
    """Returns a value for the right-hand side of an override."""
    return json.dumps(value)
