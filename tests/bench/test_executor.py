"""The executor of this machine with processes that end as a test asks: ranks that fall, slots, exit codes."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtlbench.bench.executors import local
from mtlbench.bench.executors.local import LocalExecutor
from mtlbench.errors import ExitCode
from mtlbench.runs.spec import RunSpec
from tests.support.command_line import wait_for

FORK = multiprocessing.get_context("fork")


def spec(seed: int) -> RunSpec:
    return RunSpec("suite", "uniform", seed, {"name": "uniform"}, {}, {}, {}, {}, {})


def end_with(how: int | None) -> None:
    """Ends this process with a code, by a signal (negative), or not at all."""
    faulthandler.disable()  # It would print the stack of a process that ends by a signal on purpose.
    if how is None:
        time.sleep(600)
    if how is not None and how < 0:
        os.kill(os.getpid(), -how)
        time.sleep(600)
    os._exit(how or 0)


class Processes:
    """Stands in for multiprocessing: rank ``r`` ends as ``endings[r]`` says; records what it was started with."""

    def __init__(self, *endings: int | None):
        self.endings, self.started, self.made = endings, [], []

    def Process(self, target: Callable[..., None], args: tuple[Any, ...]) -> Any:
        assert target is local._run
        self.started.append(args)
        process = FORK.Process(target=end_with, args=(self.endings[args[2]["rank"]],))
        self.made.append(process)
        return process


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[Callable[..., tuple[LocalExecutor, Processes]]]:
    made: list[LocalExecutor] = []

    def make(*endings: int | None, jobs: int = 1, **options: Any) -> tuple[LocalExecutor, Processes]:
        found = LocalExecutor(tmp_path, jobs=jobs, devices=len(endings), threads=1, **options)
        found._context = Processes(*endings)
        made.append(found)
        return found, found._context

    yield make
    for each in made:
        each.stop()


@pytest.mark.parametrize(
    ("endings", "code"),
    [
        ((None, ExitCode.FAILED), ExitCode.FAILED),
        ((ExitCode.FAILED, None, None), ExitCode.FAILED),
        ((None, -signal.SIGSEGV), -signal.SIGSEGV),
        ((-signal.SIGKILL, None), -signal.SIGKILL),
        ((ExitCode.DONE, -signal.SIGKILL), -signal.SIGKILL),
        ((ExitCode.NOT_OURS, None), ExitCode.NOT_OURS),
        ((None, 7), 7),
    ],
)
def test_one_fallen_rank_ends_all(endings: tuple[int | None, ...], code: int, executor: Any) -> None:
    """The others would wait in a collective indefinitely."""
    runner, processes = executor(*endings)
    runner.start(spec(0))
    [(ended, found)] = wait_for(lambda: list(runner.ended()), seconds=20)
    assert (ended.seed, found) == (0, code)
    assert not any(process.is_alive() for process in processes.made) and runner.running == []


@pytest.mark.parametrize(("ending", "code"), [(ExitCode.DONE, 0), (ExitCode.STOPPED, ExitCode.STOPPED)])
def test_a_rank_that_ends_well_waits_for_the_others(ending: int, code: int, executor: Any) -> None:
    runner, processes = executor(ending, None)
    runner.start(spec(0))
    wait_for(lambda: not processes.made[0].is_alive(), seconds=20)
    assert list(runner.ended()) == [] and processes.made[1].is_alive(), "the other rank may still be writing"
    assert runner.running == [spec(0).run_id] and not runner.free
    runner, processes = executor(ending, ending)
    runner.start(spec(0))
    assert [found for _, found in wait_for(lambda: list(runner.ended()), seconds=20)] == [code]


def test_waiting_ends_with_a_process_and_rests_while_none_can_end(executor: Any) -> None:
    runner, processes = executor(None, None)
    runner.start(spec(0))
    threading.Timer(0.2, processes.made[0].kill).start()
    since = time.monotonic()
    runner.wait(20)
    assert time.monotonic() - since < 15, "the wait ended with the first rank"
    processes.made[0].join()
    since = time.monotonic()
    runner.wait(0.1)
    assert time.monotonic() - since >= 0.1, "an ended rank is not waited for again, in a busy loop"
    assert [found for _, found in runner.ended()] == [-signal.SIGKILL]


def test_runs_have_accelerators_of_their_own_and_free_ones_are_taken_again(executor: Any) -> None:
    runner, processes = executor(None, None, jobs=3, accelerators=["4", "5", "6", "7"])
    for seed in range(2):
        runner.start(spec(seed))
    assert [args[3] for args in processes.started] == ["4,5", "4,5", "6,7", "6,7"]
    assert [args[2]["rank"] for args in processes.started] == [0, 1, 0, 1]
    assert all(Path(args[4]).parent.is_dir() for args in processes.started), "where their output goes"
    ports = [args[2]["port"] for args in processes.started]
    assert ports[0] == ports[1] and ports[2] == ports[3] and all(ports)
    processes.made[0].kill()
    wait_for(lambda: list(runner.ended()), seconds=20)
    runner.start(spec(2))
    assert processes.started[-1][3] == "4,5", "the slot of the run that has ended"
    runner.start(spec(3))
    assert processes.started[-1][3] == "4,5", "more runs than groups of accelerators share them in turn"


@pytest.mark.parametrize(("accelerators", "visible"), [([], ""), (["0"], "")])
def test_without_enough_accelerators_nothing_is_chosen(accelerators: list[str], visible: str, executor: Any) -> None:
    runner, processes = executor(None, None, accelerators=accelerators)
    runner.start(spec(0))
    assert processes.started[0][3] == visible


def test_a_run_sees_what_was_chosen_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtlbench.training import worker

    seen = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(worker, "process", lambda *args: seen.append((os.environ["CUDA_VISIBLE_DEVICES"], args)))
    local._run("root", {}, {"rank": 1, "world": 2, "port": 5, "threads": 1, "parent": 9}, "", "log")
    local._run("root", {}, {"rank": 1, "world": 2, "port": 5, "threads": 1, "parent": 9}, "2,3", "log")
    assert [visible for visible, _ in seen] == ["0,1", "2,3"]
    assert seen[0][1] == ("root", {}, worker.Seat(1, 2, 5, 1, 9), "log")


def test_stop_ends_every_process(executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, processes = executor(None, None)
    runner.start(spec(0))
    runner.stop()
    assert not any(process.is_alive() for process in processes.made) and runner.free and runner.running == []
    assert [process.exitcode for process in processes.made] == [-signal.SIGTERM] * 2, "asked first, then killed"


def leave(seconds: float | None) -> None:
    """Ends this process well some time after it was asked to, or not at all."""
    signal.signal(signal.SIGTERM, lambda *_: None if seconds is None else (time.sleep(seconds), os._exit(0)))
    Path(f"listening-{os.getpid()}").touch()
    time.sleep(600)


def test_stop_waits_for_a_checkpoint_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "GRACE_S", 2.0)
    runner, made = LocalExecutor(tmp_path, jobs=1, devices=2, threads=1), []

    class Leaving:
        def Process(self, target: Any, args: tuple[Any, ...]) -> Any:
            made.append(FORK.Process(target=leave, args=((0.3, None)[args[2]["rank"]],)))
            return made[-1]

    runner._context = Leaving()
    runner.start(spec(0))
    wait_for(lambda: len(list(tmp_path.glob("listening-*"))) == 2, seconds=20)
    since = time.monotonic()
    runner.stop()
    assert [process.exitcode for process in made] == [0, -signal.SIGKILL] and 1.5 < time.monotonic() - since < 20
