"""One rank of a run from start to exit code, and the heartbeat beside it, in this process."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtlbench.errors import DataError, ExitCode, MethodError, StoreError
from mtlbench.runs.store import RunFolder
from mtlbench.testing import toy_spec
from mtlbench.training import worker
from mtlbench.training.heartbeat import Heartbeat
from mtlbench.training.worker import Seat, work

TINY = "tests.support.step_parts:Tiny"
SPEC = toy_spec(TINY, steps=10)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Puts back what a rank changes in its process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_run_is_claimed_done_and_released(tmp_path: Path) -> None:
    assert work(str(tmp_path), SPEC.to_json(), Seat(threads=1)) == ExitCode.DONE
    folder = RunFolder(tmp_path, SPEC.run_id)
    assert folder.state() == "done" and not (folder.path / "lock.json").exists()
    result, spec = folder.result() or {}, folder.spec()
    assert result["cost"]["threads"] == 1 and spec is not None and spec.hash == SPEC.hash == result["hash"]
    assert work(str(tmp_path), SPEC.to_json(), Seat()) == ExitCode.NOT_OURS, "it is done"


def test_a_signal_stops_a_run_that_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, beats = worker.train, []

    def signalled(*args: Any, **options: Any) -> bool:
        listen = options.pop("listen")

        def heard() -> None:
            listen()
            beats.append(json.loads((folder.path / "lock.json").read_text()))
            os.kill(os.getpid(), signal.SIGTERM)

        return train(*args, listen=heard, **options)

    folder = RunFolder(tmp_path, SPEC.run_id)
    monkeypatch.setattr(worker, "train", signalled)
    assert work(str(tmp_path), SPEC.to_json(), Seat()) == ExitCode.STOPPED
    assert folder.state() == "stale" and [path.name for path in folder.path.glob("*.ckpt")] == ["step-00000005.ckpt"]
    assert beats[0]["pid"] == os.getpid() and not (folder.path / "lock.json").exists()
    monkeypatch.setattr(worker, "train", train)
    assert work(str(tmp_path), SPEC.to_json(), Seat()) == ExitCode.DONE


@pytest.mark.parametrize(("error", "kind"), [
    (DataError("no data"), "bad input"), (StoreError("no space"), "bad input"), (MethodError("no rule"), "error"),
    (ValueError("odd"), "error"),
])  # fmt: skip
@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_is_recorded_with_its_kind(
    error: Exception, kind: str, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first rank, and by another one where the error says what to do."""

    def broken(*args: Any, **options: Any) -> bool:
        raise error

    monkeypatch.setattr(worker, "train", broken)
    folder = RunFolder(tmp_path, SPEC.run_id)
    folder.path.mkdir()
    assert work(str(tmp_path), SPEC.to_json(), Seat(rank=rank)) == ExitCode.FAILED
    assert not (folder.path / "lock.json").exists()
    if rank and isinstance(error, ValueError):
        assert folder.error() is None
        return
    found = folder.error() or {}
    assert (found["type"], found["message"], found["kind"]) == (type(error).__name__, str(error), kind)
    assert "in broken" in found["traceback"] and abs(found["time"] - time.time()) < 60


@pytest.mark.parametrize(("rank", "world", "nodes"), [(0, 2, 1), (1, 2, 1), (0, 1, 1), (3, 4, 2)])
def test_ranks_find_each_other_by_their_seat(
    rank: int, world: int, nodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK", "RANK")
    seen: dict[str, Any] = {}
    for name in names:
        monkeypatch.setenv(name, "before")

    def look(*args: Any, world: int, note: Any, **options: Any) -> bool:
        seen.update({name: os.environ[name] for name in names}, world=world, notes=note is not None)
        return True

    monkeypatch.setattr(worker, "train", look)
    seat = Seat(rank, world, port=4321, nodes=nodes, address="10.0.0.7")
    assert work(str(tmp_path), SPEC.to_json(), seat) == ExitCode.DONE
    place = {(0, 2): ("0", "0"), (1, 2): ("0", "1"), (3, 4): ("1", "1")}.get((rank, world), ())
    joined = ("10.0.0.7", "4321", str(world), *place, str(rank)) if place else ("before",) * 6
    assert seen == {**dict(zip(names, joined, strict=True)), "world": world, "notes": rank == 0}


# ---- the heartbeat ---------------------------------------------------------------------------------------------------


class Life:
    """A claimed run with a heartbeat that beats every hundredth of a second."""

    def __init__(self, root: Path):
        self.folder, self.step, self.parent, self.orphaned = RunFolder(root, SPEC.run_id), 0, True, 0
        assert self.folder.claim(SPEC)
        self.beat = Heartbeat(self.folder, lambda: self.step, 7, lambda: self.parent, self.orphan, period=0.01)
        self.beat.start()

    def orphan(self) -> None:
        self.orphaned += 1

    def until(self, condition: Any) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.005)


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    found = Life(tmp_path)
    yield found
    found.beat.close()


def test_a_heartbeat_tells_the_progress_until_it_is_closed(life: Life) -> None:
    for step in (3, 4):
        life.step = step
        life.until(lambda: life.folder.progress().get("step") == life.step)
    assert life.folder.progress()["steps"] == 7 and life.folder.state() == "running" and life.orphaned == 0
    life.beat.close()
    assert not life.beat.is_alive() and life.beat.daemon
    before = (life.folder.path / "lock.json").read_text()
    time.sleep(0.1)
    assert (life.folder.path / "lock.json").read_text() == before


def test_the_end_of_the_parent_is_told_once_and_beats_go_on(life: Life) -> None:
    life.parent = False
    life.until(lambda: life.orphaned)
    life.step = 5
    life.until(lambda: life.folder.progress().get("step") == 5)
    time.sleep(0.1)
    assert life.orphaned == 1


def test_a_run_that_another_process_took_over_is_told_once_and_left_alone(life: Life) -> None:
    life.until(lambda: "step" in life.folder.progress())
    life.beat.close()
    lock = life.folder.path / "lock.json"
    taken = json.dumps({**json.loads(lock.read_text()), "pid": os.getpid() + 1})
    lock.write_text(taken)
    life.beat = Heartbeat(life.folder, lambda: 6, 7, lambda: True, life.orphan, period=0.01)
    life.beat.start()
    life.until(lambda: life.orphaned)
    time.sleep(0.1)
    assert life.orphaned == 1 and lock.read_text() == taken


def test_a_beat_that_fails_is_not_the_last(life: Life, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    failed = threading.Event()

    def broken(**progress: Any) -> None:
        failed.set()
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(life.folder, "beat", broken)
        life.until(failed.is_set)
    life.step = 6
    life.until(lambda: life.folder.progress().get("step") == 6)
    assert "Heartbeat failed: no space" in capsys.readouterr().out and life.orphaned == 0


def test_a_rank_asks_itself_to_stop_where_its_parent_is_gone(tmp_path: Path) -> None:
    folder, asked, ended = RunFolder(tmp_path, SPEC.run_id), [], multiprocessing.get_context("fork").Process()
    ended.start()
    ended.join()
    assert folder.claim(SPEC)
    for parent, alive in ((0, True), (os.getpid(), True), (ended.pid, False)):
        beat, note = worker._heart(folder, SPEC, Seat(parent=parent), asked)
        assert beat.parent_alive() == alive and beat.steps == 10 and beat.progress() == 0
        note(SimpleNamespace(step=4))
        assert beat.progress() == 4
        beat.close()
    before = len(asked)
    beat.orphaned()
    assert asked[before:] == [signal.SIGTERM]
