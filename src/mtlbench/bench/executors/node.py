"""What a cluster node does with a run: it trains the run as a single machine would, and reports back."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlbench.bench.executors.local import LocalExecutor, Part
from mtlbench.bench.executors.parcels import Files, Outbox, Parcel, unpack
from mtlbench.errors import ExitCode
from mtlbench.runs.liveness import born
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder

_SCRATCH = "mtlbench-node"
_LOOK_S = 0.1


@dataclass(frozen=True)
class Job:
    """A run and how it is trained, as it travels to a node.

    Attributes:
        record: Specification of the run.
        root: ``results/<suite>`` if every node sees the same folder, else ``""``.
        devices: Ranks on every node.
        threads: Threads per rank.
        place: Current folder of the bench, where the node has it.
        path: Where the bench finds modules.
        every: Seconds between parcels.
        nodes: Nodes that train the run together.
    """

    record: Mapping[str, Any]
    root: str
    devices: int
    threads: int
    place: str
    path: tuple[str, ...]
    every: float
    nodes: int = 1


def serve(
    job: Job,
    files: Files,
    sources: Mapping[str, Files],
    accelerators: Sequence[str],
    stop: Callable[[], bool],
    part: Part | None = None,
) -> Iterator[Parcel]:
    """Train a run, or resume it, and yield parcels about it; the last one holds its exit code.

    Where the results folder is shared, the run works in it and the only parcel is the last one.

    Args:
        job: The run.
        files: Content of its folder so far, by name. Empty where the folder is shared.
        sources: The same of the finished runs that it reads, by id.
        accelerators: What ``CUDA_VISIBLE_DEVICES`` calls the accelerators that are its own.
        stop: Returns whether it was asked to stop, or nobody waits for it any longer.
        part: Which part of the run this node trains, if several nodes share its ranks.
    """
    _settle(job)
    spec = RunSpec.from_json(job.record)
    root = Path(job.root) if job.root else _scratch() / spec.suite
    try:
        for run_id, content in {**sources, spec.run_id: files}.items():
            if not job.root:
                unpack(root / run_id, content)
        devices, threads = job.devices, job.threads
        executor = LocalExecutor(
            root, jobs=1, devices=devices, threads=threads, accelerators=accelerators[:devices], part=part
        )
        yield from _trained(job, spec, executor, stop)
    finally:
        if not job.root:
            shutil.rmtree(root.parent, ignore_errors=True)


def _trained(job: Job, spec: RunSpec, executor: LocalExecutor, stop: Callable[[], bool]) -> Iterator[Parcel]:
    root = executor.root
    outbox = Outbox(RunFolder(root, spec.run_id), root / "logs" / f"{spec.run_id}.log")
    outbox.packed()  # The bench has these files.
    executor.start(spec)
    due = time.monotonic() + job.every
    try:
        code = None
        while code is None:
            executor.wait(_LOOK_S)
            code = next((code for _, code in executor.ended()), None)
            if code is None and stop():
                executor.stop()
                code = ExitCode.STOPPED
            if code is None and not job.root and time.monotonic() >= due:
                yield outbox.packed()
                due = time.monotonic() + job.every
    finally:
        executor.stop()
    yield Parcel(code) if job.root else outbox.packed(code)


def _settle(job: Job) -> None:
    """Let this process find what the bench finds: files by relative paths, and modules."""
    if os.path.isdir(job.place):
        os.chdir(job.place)
    sys.path[:0] = [each for each in job.path if each not in sys.path]


def _scratch() -> Path:
    """Make a folder for one run, and remove the folders of processes that were killed."""
    base = Path(tempfile.gettempdir())
    for path in base.glob(f"{_SCRATCH}-*-*"):
        pid = path.name.split("-")[2]
        if pid.isdecimal() and born(int(pid)) is None:
            shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}-{os.getpid()}-"))
