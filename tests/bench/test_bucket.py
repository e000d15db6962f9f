"""Results in a bucket: what is claimed, sent and fetched, and what a kill between any two calls leaves behind."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mtlbench.bench.executors import bucket as module
from mtlbench.bench.executors.base import Executor
from mtlbench.bench.executors.bucket import BucketExecutor, fetch
from mtlbench.bench.scheduler import Bench
from mtlbench.errors import ExitCode, StoreError
from mtlbench.runs import liveness
from mtlbench.runs.bucket import Bucket, Claim, claims_of, files_of, owner_of
from mtlbench.runs.plan import Case, one_run
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder, read_json
from mtlbench.runs.verify import faults_of
from mtlbench.study.resolve import Study
from mtlbench.training import checkpoint
from tests.support import instant
from tests.support.command_line import mtlbench

SPEC = RunSpec("mine", "uniform", 0, {"name": "uniform"}, {"a": {}}, {}, {}, {}, {"steps": 3})
RUNS = [replace(SPEC, seed=seed) for seed in range(6)]
STEPS = 3


class Killed(BaseException):
    """This process ends here."""


class Training(Executor):
    """Trains one run at a time, a step with a checkpoint per look. ``steps`` gets seed and step of each."""

    def __init__(self, root: Path, steps: list[tuple[int, int]]):
        self.root, self.steps, self.spec = root, steps, None

    @property
    def free(self) -> bool:
        return self.spec is None

    @property
    def running(self) -> list[str]:
        return [self.spec.run_id] if self.spec else []

    def start(self, spec: RunSpec) -> None:
        self.run = RunFolder(self.root, spec.run_id)
        assert self.run.claim(spec)
        self.spec, self.step = spec, checkpoint.step_of(checkpoint.newest(self.run.path))

    def ended(self) -> Iterator[tuple[RunSpec, int]]:
        if (spec := self.spec) is None:
            return
        if self.run.lost():
            self.spec = None
            yield spec, ExitCode.STOPPED
            return
        self.step += 1
        self.steps.append((spec.seed, self.step))
        checkpoint.save({"step": self.step}, checkpoint.path_of(self.run.path, self.step))
        self.run.beat(step=self.step, steps=STEPS)
        if self.step >= STEPS:
            checkpoint.save({}, self.run.path / "final.ckpt")
            for path in self.run.path.glob("step-*"):
                path.unlink()
            self.run.finish({"hash": spec.hash}, ["final.ckpt"])
            self.spec = None
            yield spec, ExitCode.DONE

    def stop(self) -> None:
        self.spec = None


class Dying(Bucket):
    """A bucket whose process is killed at its n-th call; no later call does anything, as nothing runs then."""

    left = 10**9

    def _call(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def names(self) -> dict[str, str]:
        self._call()
        return super().names()

    def get(self, name: str) -> bytes | None:
        self._call()
        return super().get(name)

    def put(self, name: str, content: bytes) -> None:
        self._call()
        super().put(name, content)

    def remove(self, name: str) -> None:
        self._call()
        super().remove(name)


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket in memory, and benches that poll without waiting and have no heartbeat thread."""
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr("mtlbench.bench.scheduler.check_run", lambda spec: None)
    monkeypatch.setattr("mtlbench.bench.scheduler.time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr("mtlbench.bench.executors.base.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(module._Pulse, "start", lambda self: None)
    monkeypatch.setattr("os.fsync", lambda handle: None)  # No power cut is tested here.
    MemoryFileSystem.store.clear()
    yield "memory://lab/results"
    MemoryFileSystem.store.clear()


def bench(root: Path, bucket: Bucket, steps: list[tuple[int, int]], runs: int = len(RUNS)) -> dict[str, str]:
    cases = [Case(spec, plan=lambda method_plan, s=spec: one_run(s)) for spec in RUNS[:runs]]
    root.mkdir(parents=True, exist_ok=True)
    executor = BucketExecutor(root, bucket, Training(root, steps), every=0.0)
    return Bench(root, Study({"rows": [{} for _ in cases]}, cases), executor, record=False).run()


def results_in(url: str, place: Path) -> dict[int, Any]:
    """Returns the results that a machine without a copy of its own finds."""
    fetch(place, Bucket(url, "mine"))
    found = {spec.seed: RunFolder(place, spec.run_id) for spec in RUNS}
    assert [fault for run in found.values() for fault in faults_of(run)] == []
    return {seed: run.result() for seed, run in found.items() if run.result()}


def whole_results(bucket: Bucket) -> dict[str, bytes]:
    """Returns the results in a bucket after comparing all files that they name with their hashes."""
    found = {run_id: bucket.get(f"{run_id}/result.json") or b"" for run_id in files_of(bucket.names())}
    for run_id, content in found.items():
        for name, about in json.loads(content or b"{}").get("files", {}).items():
            assert hashlib.sha256(bucket.get(f"{run_id}/{name}") or b"").hexdigest() == about["sha256"]
    return {run_id: content for run_id, content in found.items() if content}


def test_twenty_kills_at_random_calls(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three machines take turns; every process but the last one is killed between two calls of the bucket."""
    draw, steps, kept, kills = random.Random(3), [], {}, 0
    monkeypatch.setattr(liveness, "FRESH_S", 0.0)  # Only one process lives at a time; others are found dead at once.
    for number in range(20):
        machine = f"machine{number % 3}"
        monkeypatch.setattr(liveness, "owner", lambda beats, n=number: {"host": f"process{n}", "beat": beats})
        monkeypatch.setattr(liveness, "is_own", lambda lock, n=number: lock.get("host") == f"process{n}")
        bucket = Dying(url, "mine")
        bucket.left = draw.randrange(6, 24)
        try:
            bench(tmp_path / machine, bucket, steps)
        except Killed:
            kills += 1
        found = whole_results(Bucket(url, "mine"))
        assert {run_id: found.get(run_id) for run_id in kept} == kept, "a result that was there is there, and the same"
        kept = found
    assert kills >= 15, "otherwise there are too few runs"
    assert set(bench(tmp_path / "machine1", Bucket(url, "mine"), steps).values()) == {"done"}
    assert sorted(results_in(url, tmp_path / "end")) == list(range(6))
    assert {seed: max(step for other, step in steps if other == seed) for seed in range(6)} == dict.fromkeys(
        range(6), 3
    )
    names = Bucket(url, "mine").names()
    assert not [name for name in names if "step-" in name or "lock" in name], "what a finished run leaves behind"


def test_a_run_that_was_finished_since_the_last_look_is_not_started(url: str, tmp_path: Path) -> None:
    bucket, steps = Bucket(url, "mine"), []
    late = BucketExecutor(tmp_path / "late", bucket, Training(tmp_path / "late", steps), every=0.0)
    assert bench(tmp_path / "early", bucket, steps, runs=1) == {SPEC.run_id: "done"}
    late.start(SPEC)
    assert late.inner.running == [] and len(steps) == STEPS
    assert list(late.ended()) == [(SPEC, ExitCode.NOT_OURS)]
    assert late.running == [] and not [name for name in bucket.names() if "lock" in name], "its claim is given back"
    late.stop()


def test_two_benches_at_once_train_every_run_once(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []
    lock, create = threading.Lock(), Bucket.create

    def exclusive(self: Bucket, name: str, content: bytes) -> bool:
        with lock:  # The bucket in memory looks and writes in two steps.
            return create(self, name, content)

    monkeypatch.setattr(Bucket, "create", exclusive)
    states: list[dict[str, str]] = []

    def work(name: str) -> None:
        states.append(bench(tmp_path / name, Bucket(url, "mine"), steps))

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [set(found.values()) for found in states] == [{"done"}, {"done"}]
    assert sorted(steps) == [(seed, step) for seed in range(6) for step in range(1, STEPS + 1)], "no step twice"
    assert sorted(results_in(url, tmp_path / "end")) == list(range(6))


def test_a_run_goes_on_elsewhere_from_what_was_sent(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []
    bucket = Bucket(url, "mine")
    (tmp_path / "a").mkdir()
    one = BucketExecutor(tmp_path / "a", bucket, Training(tmp_path / "a", steps), every=0.0)
    one.start(SPEC)
    assert list(one.ended()) == [] and owner_of(bucket, SPEC.run_id, 1) is not None
    fetch(tmp_path / "b", bucket)
    assert RunFolder(tmp_path / "b", SPEC.run_id).state() == "running", "the claim is seen as a lock"
    one.stop()
    assert owner_of(bucket, SPEC.run_id, 1) is None, "released"
    assert set(bench(tmp_path / "b", bucket, steps, runs=1).values()) == {"done"}
    assert steps == [(0, 1), (0, 2), (0, 3)] and claims_of(bucket.names()) == {SPEC.run_id: 2}


def test_who_was_taken_over_stops_and_sends_nothing(url: str, tmp_path: Path) -> None:
    bucket, steps = Bucket(url, "mine"), []
    (tmp_path / "a").mkdir()
    one = BucketExecutor(tmp_path / "a", bucket, Training(tmp_path / "a", steps), every=0.0)
    one.start(SPEC)
    assert list(one.ended()) == []
    assert Claim(bucket, SPEC.run_id, 2, {"host": "b", "beat": 1}).taken()
    before = files_of(bucket.names())[SPEC.run_id]
    assert list(one.ended()) == [], "it notices"
    assert list(one.ended()) == [(SPEC, ExitCode.STOPPED)]
    assert files_of(bucket.names())[SPEC.run_id] == before
    assert (read_json(RunFolder(tmp_path / "a", SPEC.run_id).path / "lock.json") or {})["host"] == "b"


def test_a_failure_is_seen_elsewhere_and_goes_when_the_run_is_tried_again(url: str, tmp_path: Path) -> None:
    bucket, steps = Bucket(url, "mine"), []
    bucket.put(f"{SPEC.run_id}/error.json", json.dumps({"type": "Error", "message": "no ink"}).encode())
    assert set(bench(tmp_path / "a", bucket, steps, runs=1).values()) == {"failed"} and steps == []
    executor = BucketExecutor(tmp_path / "a", bucket, Training(tmp_path / "a", steps), every=0.0)
    case = Case(SPEC, plan=lambda method_plan: one_run(SPEC))
    Bench(tmp_path / "a", Study({"rows": [{}]}, [case]), executor, retry=True, record=False).run()
    assert "error.json" not in files_of(bucket.names())[SPEC.run_id] and list(results_in(url, tmp_path / "b")) == [0]


def test_an_answer_that_fails_is_asked_for_again(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every seventh call fails while the runs train; nothing is lost, and no run is trained again."""
    calls, steps, put = [0], [], Bucket.put

    def failing(self: Bucket, name: str, content: bytes) -> None:
        calls[0] += 1
        if calls[0] % 7 == 0:
            raise ConnectionError("reset by peer")
        put(self, name, content)

    monkeypatch.setattr(Bucket, "put", failing)
    monkeypatch.setattr(BucketExecutor, "stop", lambda self: None)
    assert set(bench(tmp_path / "a", Bucket(url, "mine"), steps).values()) == {"done"}
    assert sorted(steps) == [(seed, step) for seed in range(6) for step in range(1, STEPS + 1)]
    assert sorted(results_in(url, tmp_path / "end")) == list(range(6)) and calls[0] > 10


def test_a_bucket_that_cannot_be_read_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **more: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.find", denied)
    with pytest.raises(StoreError, match="credentials"):
        Bucket(url, "mine").names()


def test_heartbeats_do_not_wait_for_uploads(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Claim(Bucket(url, "mine"), SPEC.run_id, 1, liveness.owner(0))
    assert claim.taken() and not Claim(claim.bucket, SPEC.run_id, 1, liveness.owner(0)).taken()
    pulse = module._Pulse(0.0)
    pulse.add(claim)
    waits = iter([False, False, True])
    monkeypatch.setattr(pulse._done, "wait", lambda seconds: next(waits))
    pulse.tell(claim, {"step": 7})
    pulse.run()
    owner = owner_of(claim.bucket, SPEC.run_id, 1) or {}
    assert (owner["beat"], owner["step"], owner["host"]) == (2, 7, liveness.machine())
    pulse.remove(claim)
    monkeypatch.setattr(pulse._done, "wait", lambda seconds: next(iter_again))
    iter_again = iter([False, True])
    pulse.run()
    assert (owner_of(claim.bucket, SPEC.run_id, 1) or {})["beat"] == 2


def test_a_store_that_replaces_what_it_should_create_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(url, "mine")
    plain = bucket.fs.pipe_file
    monkeypatch.setattr(type(bucket.fs), "pipe_file", lambda self, path, value, mode="": plain(path, value))
    with pytest.raises(StoreError, match="exclusively"):
        bucket.check()
    with pytest.raises(StoreError, match="fsspec"):
        Bucket("nonsense://lab/results", "mine")


def test_commands_read_a_bucket_or_say_that_they_do_not(url: str, tmp_path: Path) -> None:
    study = instant.resolved()
    root = instant.finished(tmp_path / "there", study)
    assert BucketExecutor(root, Bucket(url, "digits"), Training(root, []), every=0.0).stop() is None
    here = tmp_path / "here"
    here.mkdir()
    status = mtlbench(here, "status", "digits", "--results", url)
    assert status.code == 0 and "6 done" in status.text, status.text
    report = mtlbench(here, "report", "digits", "--results", url, "--format", "bibtex")
    assert report.code == 0 and "@" in report.text, report.text
    refused = mtlbench(here, "serve", "digits", "--results", url)
    assert refused.code == ExitCode.REFUSED and "results/memory-lab-results: name that folder" in refused.text
    words = ("bench", "digits", *instant.OVERRIDES, "--results", url)
    again = mtlbench(here, *words)
    assert again.code == 0 and "6 runs: 6 done" in again.text, again.text
    assert (here / "results/memory-lab-results/digits/report.html").exists()
    no = mtlbench(here, *words, "trainer.steps=5", "--executor", "ray")
    assert no.code == ExitCode.REFUSED and "shared=false" in no.text
