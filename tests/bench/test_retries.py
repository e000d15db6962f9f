"""What the bench makes of exit codes: how often a run is started, and which error it gets."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtlbench.bench.executors.base import Executor
from mtlbench.bench.scheduler import RETRIES, Bench
from mtlbench.errors import ExitCode
from mtlbench.runs.plan import Case
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder, write_json
from mtlbench.study.resolve import Study
from tests.support.command_line import specs


class Scripted(Executor):
    """Ends every started run at the next look, as a function of the run and its number of starts says."""

    def __init__(self, script: Callable[[RunSpec, int], int]):
        self.script, self.starts, self.pending, self.looks = script, [], [], 0

    @property
    def free(self) -> bool:
        return True

    @property
    def running(self) -> list[str]:
        return [spec.run_id for spec, _ in self.pending]

    def start(self, spec: RunSpec) -> None:
        assert spec.run_id not in self.running, "it runs already"
        self.starts.append(spec.run_id)
        self.pending.append((spec, self.script(spec, self.starts.count(spec.run_id))))

    def ended(self) -> Iterator[tuple[RunSpec, int]]:
        self.looks += 1
        if self.looks % 2 == 0:  # A run lasts for a while, and the bench looks at it meanwhile.
            while self.pending:
                yield self.pending.pop()

    def stop(self) -> None:
        self.pending.clear()


@pytest.fixture(scope="module")
def uniform() -> RunSpec:
    return specs("methods=[uniform]")[0]


def bench(root: Path, spec: RunSpec, script: Callable[[RunSpec, int], int], **options: Any) -> tuple[Any, list[str]]:
    executor = Scripted(script)
    study = Study({"rows": [{}]}, [Case(spec)])
    found = Bench(root, study, executor, record=False, **options).run()
    return found[spec.run_id], executor.starts


def finish(root: Path, spec: RunSpec) -> int:
    folder = RunFolder(root, spec.run_id)
    assert folder.claim(spec)
    folder.finish({"hash": spec.hash})
    return ExitCode.DONE


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (-signal.SIGKILL, "Killed", ["SIGKILL", "3 times"]),
        (-signal.SIGSEGV, "Killed", ["SIGSEGV"]),
        (ExitCode.DONE, "NoResult", ["exit code 0", "3 times", "logs"]),
        (17, "NoResult", ["exit code 17"]),
    ],
)
def test_a_lost_process_is_started_again_twice(
    code: int, kind: str, words: list[str], uniform: RunSpec, tmp_path: Path
) -> None:
    state, starts = bench(tmp_path, uniform, lambda spec, count: code)
    assert state == "failed" and len(starts) == RETRIES + 1 == 3
    error = RunFolder(tmp_path, uniform.run_id).error() or {}
    assert error["type"] == kind and all(word in error["message"] for word in words)


def test_a_silent_failure_is_not_repeated(uniform: RunSpec, tmp_path: Path) -> None:
    state, starts = bench(tmp_path, uniform, lambda spec, count: ExitCode.FAILED)
    assert (state, len(starts)) == ("failed", 1)
    assert "silently" in (RunFolder(tmp_path, uniform.run_id).error() or {})["message"]


def test_the_last_retry_may_succeed(uniform: RunSpec, tmp_path: Path) -> None:
    state, starts = bench(tmp_path, uniform, lambda s, n: finish(tmp_path, s) if n == 3 else -signal.SIGKILL)
    assert (state, len(starts)) == ("done", 3)


@pytest.mark.parametrize("code", [ExitCode.STOPPED, ExitCode.NOT_OURS])
def test_what_is_no_loss_is_not_counted(code: ExitCode, uniform: RunSpec, tmp_path: Path) -> None:
    """A worker that was asked to stop, or found another owner, says nothing about the run."""
    state, starts = bench(tmp_path, uniform, lambda spec, n: finish(tmp_path, spec) if n == 6 else code)
    assert (state, len(starts)) == ("done", 6)


def test_a_recorded_error_stays_as_it_is(uniform: RunSpec, tmp_path: Path) -> None:
    def fall(spec: RunSpec, count: int) -> int:
        folder = RunFolder(tmp_path, spec.run_id)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json(folder.path / "error.json", {"type": "DataError", "message": f"start {count}"})
        return ExitCode.FAILED

    state, starts = bench(tmp_path, uniform, fall)
    assert (state, len(starts)) == ("failed", 1)
    assert bench(tmp_path, uniform, fall)[1] == [], "without retry a failed run is left alone"
    assert len(bench(tmp_path, uniform, fall, retry=True)[1]) == 1, "with it, it is run once more and not twice"
    assert (RunFolder(tmp_path, uniform.run_id).error() or {})["message"] == "start 1"


def test_a_dead_owners_lock_is_cleared_before_the_start(uniform: RunSpec, tmp_path: Path) -> None:
    """The new process has not watched the lock; one of another machine would keep it waiting."""
    folder = RunFolder(tmp_path, uniform.run_id)
    assert folder.claim(uniform)
    lock = folder.progress()
    write_json(folder.path / "lock.json", {**lock, "born": "another start of this process id"})
    assert folder.state() == "stale"

    def look(spec: RunSpec, count: int) -> int:
        assert not (folder.path / "lock.json").exists()
        return finish(tmp_path, spec)

    assert bench(tmp_path, uniform, look) == ("done", [uniform.run_id])
