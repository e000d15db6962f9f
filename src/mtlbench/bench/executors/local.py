"""Executor of this machine: forks runs from a server that has imported everything (0.05 s each instead of 6 s)."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlbench.bench.executors.base import Executor
from mtlbench.errors import ExitCode
from mtlbench.runs.spec import RunSpec

GRACE_S = 30.0
"""Seconds that runs have to reach the end of a step and write a checkpoint after they were asked to stop."""


@dataclass(frozen=True)
class Part:
    """The part of a run that one of several nodes trains; each of them trains as many ranks.

    Attributes:
        node: Number of the node; node 0 has rank zero.
        nodes: Number of nodes.
        address: Of node 0.
        port: Where rank zero listens.
    """

    node: int
    nodes: int
    address: str
    port: int


@dataclass
class _Job:
    spec: RunSpec
    processes: list[Any]
    slot: int
    since: float = field(default_factory=time.monotonic)


class LocalExecutor(Executor):
    """Runs up to ``jobs`` runs at once, ``devices`` processes each.

    Args:
        root: ``results/<suite>``.
        jobs: Runs at once.
        devices: Ranks per run on this machine.
        threads: Threads per process.
        accelerators: What ``CUDA_VISIBLE_DEVICES`` calls the accelerators that runs share, ``devices`` of them each;
            more jobs than such groups share them in turn. If empty, runs see what this process sees.
        part: Which part of a run this machine trains, if other machines train the rest of its ranks.
    """

    def __init__(
        self,
        root: Path,
        *,
        jobs: int,
        devices: int,
        threads: int,
        accelerators: Sequence[str] = (),
        part: Part | None = None,
    ):
        self.root, self.jobs, self.devices, self.threads = root, jobs, devices, threads
        self.accelerators, self.part = accelerators, part
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["mtlbench.training.worker"])
        self._running: dict[str, _Job] = {}

    @property
    def free(self) -> bool:
        """Whether another run may start."""
        return len(self._running) < self.jobs

    @property
    def running(self) -> list[str]:
        """Ids of the runs that were started here and have not ended."""
        return list(self._running)

    def start(self, spec: RunSpec) -> None:
        """Starts a run in its own processes."""
        slot = min(set(range(self.jobs)) - {job.slot for job in self._running.values()})
        log = self.root / "logs" / f"{spec.run_id}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        part = self.part or Part(0, 1, "127.0.0.1", free_port() if self.devices > 1 else 0)
        arguments = [
            (str(self.root), spec.to_json(), self._seat(rank, part), self._visible(slot), str(log))
            for rank in range(self.devices)
        ]
        processes = [self._context.Process(target=_run, args=each) for each in arguments]
        for process in processes:
            process.start()
        self._running[spec.run_id] = _Job(spec, processes, slot)

    def ended(self) -> Iterator[tuple[RunSpec, int]]:
        """Yields runs that have ended since the last call, with their worst exit code (negative: a signal)."""
        for run_id, job in list(self._running.items()):
            codes = [process.exitcode for process in job.processes]
            if any(code not in (None, ExitCode.DONE, ExitCode.STOPPED) for code in codes):
                # A rank fell, and the others would wait for it in a collective indefinitely.
                self._end(job, signal.SIGKILL)
                codes = [process.exitcode for process in job.processes]
            if None not in codes:
                del self._running[run_id]
                own = [code for code in codes if code not in (ExitCode.DONE, -signal.SIGKILL)]
                yield job.spec, min(codes) if min(codes) < 0 and not own else max(own, default=0)

    def stop(self) -> None:
        """Asks every run to write a checkpoint and leave, and ends those that do not within the grace time."""
        for job in self._running.values():
            for process in job.processes:
                process.terminate()
        deadline = time.monotonic() + GRACE_S
        for job in self._running.values():
            for process in job.processes:
                process.join(max(0.0, deadline - time.monotonic()))
            self._end(job, signal.SIGKILL)
        self._running.clear()

    def wait(self, seconds: float) -> None:
        """Blocks until a process ends, but no longer than so many seconds."""
        alive = [process for job in self._running.values() for process in job.processes if process.exitcode is None]
        if alive:
            multiprocessing.connection.wait([process.sentinel for process in alive], seconds)
        else:
            super().wait(seconds)

    def _end(self, job: _Job, number: int) -> None:
        for process in job.processes:
            if process.exitcode is None:
                os.kill(process.pid, number)
            process.join()

    def _visible(self, slot: int) -> str:
        """Returns the accelerators of a slot, separated by commas; empty if there is nothing to choose."""
        groups = len(self.accelerators) // self.devices
        start = slot % groups * self.devices if groups else 0
        return ",".join(self.accelerators[start : start + self.devices]) if groups else ""

    def _seat(self, rank: int, part: Part) -> dict[str, Any]:
        """Returns the seat of a process, by its number on this machine."""
        return {
            "rank": part.node * self.devices + rank,
            "world": part.nodes * self.devices,
            "port": part.port,
            "threads": self.threads,
            "parent": os.getpid(),
            "nodes": part.nodes,
            "address": part.address,
        }


def _run(root: str, record: dict[str, Any], seat: dict[str, Any], visible: str, log: str) -> None:
    """First code of a forked run: chooses its accelerators before anything touches them."""
    if visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    from mtlbench.training.worker import Seat, process

    process(root, record, Seat(**seat), log)


def free_port(address: str = "127.0.0.1") -> int:
    """Returns a port of this machine that nothing listens to.

    Args:
        address: One of this machine's.
    """
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
