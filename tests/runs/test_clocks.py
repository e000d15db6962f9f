"""Three hosts whose clocks are a day apart share a results folder: no run waits, none is trained twice."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from mtlbench.runs import liveness
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder, sweep, temporary, write_json

DAY_S = 86400.0
TICK_S = 20.0
SPEC = RunSpec("suite", "uniform", 0, {"name": "uniform"}, {"a": {}}, {}, {}, {}, {"steps": 3})
RUNS = [replace(SPEC, seed=seed) for seed in range(6)]
START = time.time()


def times(root: Path) -> dict[Path, int]:
    """Returns when every file of a folder was written."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


@dataclass
class Host:
    """One machine: the error of its clock, what it has seen of locks, and the runs that it trains, with steps left."""

    name: str
    skew: float
    now: float = 0.0
    seen: dict = field(default_factory=dict)
    own: dict[str, tuple[RunFolder, int]] = field(default_factory=dict)

    def monotonic(self) -> float:
        """Returns seconds since this host was started, which say nothing about those of another one."""
        return self.now + abs(self.skew) / 7

    @contextmanager
    def here(self, root: Path) -> Iterator[None]:
        """Lets the store believe that it runs on this host; files get its time."""
        before = times(root)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(liveness, "machine", lambda: self.name)
            patch.setattr(liveness, "_SEEN", self.seen)
            patch.setattr(liveness, "time", self)
            patch.setattr(time, "time", lambda: START + self.now + self.skew)
            yield
            for path, written in times(root).items():
                if before.get(path) != written:
                    os.utime(path, (START + self.now + self.skew,) * 2)

    def work(self, root: Path, finished: list[int]) -> None:
        """Does what a bench does within a tick: trains a step of every own run, and claims one that nobody trains."""
        for run_id, (run, left) in list(self.own.items()):
            if run.lost():
                del self.own[run_id]
            elif left:
                run.beat(step=4 - left, steps=3)
                self.own[run_id] = run, left - 1
            else:
                finished.append(int(run_id.split("-s")[1].partition("-")[0]))
                run.finish({"hash": next(spec.hash for spec in RUNS if spec.run_id == run_id)})
                del self.own[run_id]
        for spec in RUNS if len(self.own) < 2 else ():
            run = RunFolder(root, spec.run_id)
            if run.state() == "stale":
                run.clear_lock()
            if run.state() == "todo" and run.claim(spec):
                self.own[spec.run_id] = run, 3
                return


@pytest.mark.parametrize("skews", [(0.0, DAY_S, -DAY_S), (-DAY_S, 0.0, DAY_S)])
def test_hosts_a_day_apart_train_every_run_once(skews: tuple[float, ...], tmp_path: Path) -> None:
    """The first host dies in the middle; the second is suspended for longer than a lock is trusted, and wakes up."""
    hosts = [Host(name, skew) for name, skew in zip("abc", skews, strict=True)]
    finished: list[int] = []
    suspended: list[str] = []
    for tick in range(30):
        awake = [host for host in hosts if not (host.name == "a" and tick >= 2 or host.name == "b" and 2 <= tick < 9)]
        if tick == 2:
            suspended = list(hosts[1].own)
        for host in hosts:
            host.now += TICK_S
        for host in awake:
            with host.here(tmp_path):
                host.work(tmp_path, finished)
        owners = [run_id for host in awake for run_id in host.own]
        assert len(owners) == len(set(owners)), "two hosts train one run"
        if len(finished) == len(RUNS):
            break
    assert sorted(finished) == list(range(6)), "each run once"
    assert suspended and not set(suspended) & set(hosts[1].own), "it notices that others have taken over"
    assert tick * TICK_S < 8 * liveness.FRESH_S, "nothing waits for a day to pass"


@pytest.mark.parametrize("skew", [DAY_S, -DAY_S])
def test_a_lock_or_a_file_dated_by_another_clock_is_what_it_was(skew: float, tmp_path: Path) -> None:
    """Some shared file systems take a file's time from the host that writes it."""
    one, other = Host("a", 0.0), Host("b", skew)
    with other.here(tmp_path):
        run = RunFolder(tmp_path, SPEC.run_id)
        assert run.claim(SPEC)
        write_json(tmp_path / "study.json", {})
        half = temporary(run.path / "step-00000001.ckpt")
        half.touch()
    with one.here(tmp_path):
        sweep(run.path)
        assert half.exists(), "the other host still writes it"
        assert RunFolder(tmp_path, SPEC.run_id).state() == "running"
        one.now += liveness.FRESH_S + 1
        assert RunFolder(tmp_path, SPEC.run_id).state() == "stale"
