"""Executor of a cluster: runs are tasks on nodes, with or without a folder that all nodes share.

With a shared results folder the nodes work in it, exactly as several benches do. Without one, this process holds the
claim of every run that it has sent away; parcels bring checkpoints, records and logs back while a run trains, so that a
run whose node is lost goes on elsewhere from the last parcel.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mtlbench.bench.executors.base import Executor
from mtlbench.bench.executors.local import GRACE_S
from mtlbench.bench.executors.node import Job
from mtlbench.bench.executors.parcels import Files, Parcel, names_of, read, sources_of, unpack
from mtlbench.errors import ExitCode
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder

_BEAT_S = 5.0
"""Seconds between heartbeats of a run that is elsewhere; less than other machines wait for one."""
_NOT_SENT = (".damaged.json", "error.json", "result.json")


class Cluster(Protocol):
    """What the executor needs from a cluster. One file per library implements it."""

    def room(self) -> int:
        """Returns how many runs the cluster can take as it is now."""

    def submit(self, job: Job, files: Files, sources: dict[str, Any]) -> Any:
        """Submit a run; returns the ticket that identifies it in later calls."""

    def keep(self, files: Files) -> Any:
        """Returns a stand-in for files that several runs read, so that they travel to a node once."""

    def arrived(self, ticket: Any) -> tuple[list[Parcel], int | None]:
        """Returns parcels that have arrived, and the exit code of a run that has ended or was lost, without waiting.

        The exit code of a run that has ended may be in its last parcel instead.
        """

    def cancel(self, ticket: Any) -> None:
        """Ends a task at once."""

    def ring(self) -> None:
        """Asks all tasks to write a checkpoint and leave."""


@dataclass
class _Away:
    spec: RunSpec
    ticket: Any
    folder: RunFolder
    progress: dict[str, Any] = field(default_factory=dict)
    beat: float = field(default_factory=time.monotonic)


class RemoteExecutor(Executor):
    """Trains every run as a task on a cluster.

    Args:
        root: ``results/<suite>``.
        cluster: Where tasks run.
        jobs: Runs at once; None for as many as there is room for.
        devices: Ranks per run.
        threads: Threads per rank.
        shared: Whether every node sees ``root`` under the same path.
        every: Seconds between parcels of a run whose node does not see ``root``.
    """

    def __init__(
        self,
        root: Path,
        cluster: Cluster,
        *,
        jobs: int | None = None,
        devices: int = 1,
        threads: int = 1,
        shared: bool = True,
        every: float = 10.0,
    ):
        self.root, self.cluster, self.jobs = root, cluster, jobs
        self.devices, self.threads, self.shared, self.every = devices, threads, shared, every
        self._away: dict[str, _Away] = {}
        self._refused: list[RunSpec] = []
        self._kept: dict[str, Any] = {}

    @property
    def free(self) -> bool:
        """Whether another run may start."""
        return len(self._away) < (self.jobs or self.cluster.room())

    @property
    def running(self) -> list[str]:
        """Ids of the runs that were sent away and have not ended."""
        return [*self._away, *(spec.run_id for spec in self._refused)]

    def start(self, spec: RunSpec) -> None:
        """Sends a run to a node. Without a shared folder this process claims it, and its files go along."""
        folder = RunFolder(self.root, spec.run_id)
        files: Files = {}
        sources: dict[str, Any] = {}
        if not self.shared:
            if not folder.claim(spec):
                self._refused.append(spec)
                return
            names = [name for name in names_of(folder.path) if not name.endswith(_NOT_SENT)]
            files = read(folder.path, names)
            sources = {run_id: self._source(run_id) for run_id in sources_of(spec)}
        (self.root / "logs").mkdir(parents=True, exist_ok=True)
        job = Job(
            spec.to_json(),
            str(self.root.absolute()) if self.shared else "",
            self.devices,
            self.threads,
            os.getcwd(),
            tuple(os.path.abspath(each) for each in sys.path),
            self.every,
        )
        self._away[spec.run_id] = _Away(spec, self.cluster.submit(job, files, sources), folder)

    def _source(self, run_id: str) -> Any:
        if run_id not in self._kept:
            path = RunFolder(self.root, run_id).path
            self._kept[run_id] = self.cluster.keep(read(path, names_of(path)))
        return self._kept[run_id]

    def ended(self) -> Iterator[tuple[RunSpec, int]]:
        """Yields runs that have ended since the last call, after their files were written."""
        while self._refused:
            yield self._refused.pop(), ExitCode.NOT_OURS
        for run_id, away in list(self._away.items()):
            parcels, code = self.cluster.arrived(away.ticket)
            if not self.shared and not self._received(away, parcels):
                self.cluster.cancel(away.ticket)
                code = ExitCode.NOT_OURS
            code = next((parcel.code for parcel in parcels if parcel.code is not None), code)
            if code is not None:
                del self._away[run_id]
                if not self.shared and not away.folder.lost():
                    away.folder.release()
                yield away.spec, code

    def _received(self, away: _Away, parcels: list[Parcel]) -> bool:
        """Write what has arrived and renew the claim; returns False if another process has taken the run over."""
        due = time.monotonic() - away.beat >= _BEAT_S
        if (parcels or due) and away.folder.lost():
            return False
        for parcel in parcels:
            unpack(away.folder.path, parcel.files, parcel.removed)
            if parcel.log:
                with (self.root / "logs" / f"{away.spec.run_id}.log").open("ab") as file:
                    file.write(parcel.log)
            away.progress |= parcel.progress
        if parcels or due:
            away.folder.beat(**away.progress)
            away.beat = time.monotonic()
        return True

    def stop(self) -> None:
        """Asks every run to write a checkpoint and leave, takes in what arrives, and cancels slow ones."""
        if self._away:
            self.cluster.ring()
        deadline = time.monotonic() + GRACE_S + self.every
        while self._away and time.monotonic() < deadline:
            for _ in self.ended():
                pass
            time.sleep(0.1)
        for away in self._away.values():
            self.cluster.cancel(away.ticket)
            if not self.shared and not away.folder.lost():
                away.folder.release()
        self._away.clear()
