"""A killed run resumes and ends bit-identical to one that nobody touched, whatever was killed and when."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from tests.support.command_line import (
    SMALL,
    ended,
    executor,
    family,
    gone,
    kill,
    launch,
    mtlbench,
    outcome,
    run_to_end,
    runs_of,
    specs,
    step,
    wait_for,
)

METHODS = ("uniform", "famo", "pcgrad", "task_moe")
KILLS, STEPS = 2, 40
SETTINGS = (
    *SMALL,
    f"trainer.steps={STEPS}",
    "trainer.workers=2",
    "trainer.checkpoint_every=7",
    "trainer.evaluate_every=10",
)
"""Five epochs; checkpoints, evaluations and epochs end at different steps."""

Whole = Callable[[str], tuple[RunSpec, RunFolder]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Gives the specification of a method and its run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    members = {spec.label: spec for spec in specs(*SETTINGS, f"methods=[{','.join(METHODS)}]")}
    finished: dict[str, RunFolder] = {}

    def of(method: str) -> tuple[RunSpec, RunFolder]:
        if method not in finished:
            finished[method] = run_to_end(folder, members[method])
        return members[method], finished[method]

    return of


def kill_when(folder: Path, spec: RunSpec, condition: Callable[[], object], delay: float = 0.0) -> None:
    """Starts or resumes a run and kills it, with its loaders, some time after a condition holds."""
    runner = executor(folder)
    runner.start(spec)
    (job,) = runner._running.values()
    (process,) = job.processes
    wait_for(lambda: condition() or process.exitcode is not None, every=0.0005)
    time.sleep(delay)
    assert process.exitcode is None, "the run ended before it could be killed"
    kill(*family(process.pid))
    process.join()


@pytest.mark.parametrize("method", ["famo", "task_moe"])
def test_killed_at_random_moments(method: str, whole: Whole, tmp_path: Path) -> None:
    spec, untouched = whole(method)
    run, chance = RunFolder(tmp_path, spec.run_id), random.Random(method)
    for at in sorted(chance.randrange(STEPS - 3) for _ in range(KILLS)):
        kill_when(tmp_path, spec, lambda at=at: step(run) > at or (at == 0 and run.progress()), chance.random() * 0.02)
        assert run.state() == "stale"
    assert outcome(run_to_end(tmp_path, spec)) == outcome(untouched)


def test_optimiser_digest_tells_states_apart(whole: Whole) -> None:
    digests = {(whole(method)[1].result() or {})["optimiser_sha256"] for method in METHODS}
    assert len(digests) == len(METHODS)


def test_killed_as_a_command(whole: Whole, tmp_path: Path) -> None:
    spec, untouched = whole("famo")
    run = RunFolder(tmp_path / "results" / "digits", spec.run_id)
    process = launch(tmp_path, "run", "digits", "--method", "famo", *SETTINGS)
    wait_for(lambda: step(run) > 17)
    kill(*family(process.pid))
    assert ended(process).code == -signal.SIGKILL
    again = ended(launch(tmp_path, "run", "digits", "--method", "famo", *SETTINGS))
    assert again.code == 0, again.text
    assert outcome(run) == outcome(untouched)


def test_killed_while_a_checkpoint_is_written(whole: Whole, tmp_path: Path) -> None:
    spec, untouched = whole("uniform")
    run = RunFolder(tmp_path, spec.run_id)
    kill_when(tmp_path, spec, lambda: any(run.path.glob("step-00000014.ckpt")))
    kill_when(tmp_path, spec, lambda: any(run.path.glob(".step-000000[23]*.ckpt.*")))
    assert any(run.path.glob(".step-*.ckpt.*")), "the kill came too late to leave half a checkpoint"
    assert outcome(run_to_end(tmp_path, spec)) == outcome(untouched)
    assert not [path.name for path in run.path.iterdir() if path.name.startswith(".")]


def test_killed_between_last_step_and_result(whole: Whole, tmp_path: Path) -> None:
    spec, untouched = whole("pcgrad")
    run = RunFolder(tmp_path, spec.run_id)
    kill_when(tmp_path, spec, lambda: (run.path / f"step-{STEPS:08d}.ckpt").exists())
    # Once more after the final scores: their row must not stand twice.
    kill_when(tmp_path, spec, lambda: any("examples" in path.name for path in run.path.iterdir()))
    assert run.result() is None
    assert outcome(run_to_end(tmp_path, spec)) == outcome(untouched)


@pytest.fixture(scope="module")
def stale(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gives the results of a run that was killed after a few checkpoints."""
    folder = tmp_path_factory.mktemp("stale")
    spec, _ = whole("uniform")
    path = RunFolder(folder, spec.run_id).path
    kill_when(folder, spec, lambda: (path / "step-00000021.ckpt").exists())
    return folder


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "no hash"])
def test_damaged_checkpoint_is_passed_over(damage: str, stale: Path, whole: Whole, tmp_path: Path) -> None:
    spec, untouched = whole("uniform")
    shutil.copytree(stale, tmp_path, dirs_exist_ok=True)
    run = RunFolder(tmp_path, spec.run_id)
    newest = max(run.path.glob("step-*.ckpt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "no hash":
        newest.with_name(newest.name + ".sha256").unlink()
    else:
        half = bytes(content[: len(content) // 2])
        newest.write_bytes({"flip": bytes(content), "truncate": half, "empty": b""}[damage])
    assert outcome(run_to_end(tmp_path, spec)) == outcome(untouched)
    assert newest.name in (tmp_path / "logs" / f"{spec.run_id}.log").read_text()


def test_killed_loader_worker_fails_the_run_and_retry_resumes_it(whole: Whole, tmp_path: Path) -> None:
    spec, untouched = whole("uniform")
    runner, run = executor(tmp_path), RunFolder(tmp_path, spec.run_id)
    runner.start(spec)
    pid = wait_for(lambda: step(run) > 8 and run.progress().get("pid"))
    kill(family(pid)[-1])
    [(_, code)] = wait_for(lambda: list(runner.ended()))
    assert (code, run.state()) == (1, "failed")
    # The worker is missed while waited for, or while a batch is read from it: the connection is reset or at its end.
    error = run.error() or {}
    assert "DataLoader worker" in error["message"] or error["type"] in ("ConnectionResetError", "EOFError"), error
    assert outcome(run_to_end(tmp_path, spec)) == outcome(untouched)


def test_bench_and_worker_killed(tmp_path: Path) -> None:
    settings = (*SMALL, "trainer.steps=100", "trainer.checkpoint_every=10")
    words = ("bench", "digits", "--methods", "uniform famo", "--jobs", "2", *settings)
    first = launch(tmp_path, *words)
    locks = tmp_path / "results" / "digits"
    wait_for(lambda: first.poll() is not None or len(list(locks.glob("*/step-00000010.ckpt"))) == 2)
    children = family(first.pid)[1:]
    kill(first.pid)
    ended(first)
    wait_for(lambda: gone(children), seconds=10)
    runs = runs_of(tmp_path)
    assert {run.state() for run in runs.values()} == {"stale"}

    second = launch(tmp_path, *words)
    run = runs["famo"]
    pid = wait_for(lambda: run.state() == "running" and step(run) > 40 and run.progress()["pid"])
    kill(pid)
    answer = ended(second)
    assert answer.code == 0, answer.text
    for run in runs.values():
        assert [row["step"] for row in outcome(run)["rows"] if "lr" in row] == list(range(1, 101))
    assert mtlbench(tmp_path, "status", "digits").code == 0
