"""Executor over a bucket: runs are trained in a folder of this machine, and the bucket is what machines share.

The folder is a copy. Runs that are finished elsewhere are fetched into it, and claims of others are written into it as
locks, so that the store sees them as it sees other machines on a shared folder. What runs here write is sent while they
train; the result is sent last, so that a run counts as done only when all its files are there.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mtlbench.bench.executors.base import Executor
from mtlbench.bench.executors.parcels import Files, Outbox, read, unpack
from mtlbench.errors import ExitCode, StoreError, shortened
from mtlbench.runs import liveness
from mtlbench.runs.bucket import Bucket, Claim, claims_of, files_of, owner_of
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RESULT_FILE, RunFolder, read_json, write_bytes, write_json

_STEPS = "step-"
STUDY = ("study.json", "registration.json")
"""Files of a suite's folder that are sent; reports are made from them."""


class BucketExecutor(Executor):
    """Trains in a folder what it can claim in a bucket.

    Args:
        root: ``results/<suite>`` on this machine.
        bucket: What machines share.
        inner: Trains in ``root``.
        every: Seconds between looks at the bucket, and between heartbeats.
    """

    def __init__(self, root: Path, bucket: Bucket, inner: Executor, every: float = 10.0):
        self.root, self.bucket, self.inner, self.every = root, bucket, inner, every
        self._own: dict[str, tuple[Claim, Outbox]] = {}
        self._refused: list[RunSpec] = []
        self._over: list[tuple[RunSpec, int]] = []
        self._numbers: dict[str, int] = {}
        self._due = 0.0
        self._pulse = _Pulse(every)
        bucket.check()
        self._numbers = fetch(root, bucket, self._own)
        self._complete()

    @property
    def free(self) -> bool:
        """Whether another run may start."""
        return self.inner.free

    @property
    def running(self) -> list[str]:
        """Ids of the runs that were started here and were not yet yielded by `ended`."""
        return [*self.inner.running, *(spec.run_id for spec in self._refused), *(spec.run_id for spec, _ in self._over)]

    def start(self, spec: RunSpec) -> None:
        """Claims a run in the bucket, fetches its checkpoint, and starts it, unless it is claimed or done elsewhere."""
        if not self._claimed(spec.run_id):
            self._refused.append(spec)
            self._due = 0.0
            return
        run = RunFolder(self.root, spec.run_id)
        names = files_of(self.bucket.names()).get(spec.run_id, {})
        if names:  # What was sent is what counts: another machine may have gone on from it.
            shutil.rmtree(run.path, ignore_errors=True)
            unpack(run.path, _content(self.bucket, spec.run_id, names))
        outbox = self._own[spec.run_id][1]
        if names:
            outbox.packed()  # They need not be sent back.
        if run.result() is not None:  # Another machine has finished it since this one last looked.
            self._give_back(spec.run_id)
            self._refused.append(spec)
            return
        (run.path / "lock.json").unlink(missing_ok=True)
        self.inner.start(spec)

    def _claimed(self, run_id: str) -> bool:
        claim = Claim(self.bucket, run_id, self._numbers.get(run_id, 0) + 1, liveness.owner(0))
        if not claim.taken():
            return False
        self._numbers[run_id] = claim.number
        log = self.root / "logs" / f"{run_id}.log"
        self._own[run_id] = claim, Outbox(RunFolder(self.root, run_id), log)
        self._pulse.add(claim)
        return True

    def ended(self) -> Iterator[tuple[RunSpec, int]]:
        """Yields runs that have ended since the last call, after their files were sent."""
        while self._refused:
            yield self._refused.pop(), ExitCode.NOT_OURS
        self._over += self.inner.ended()
        try:
            while self._over:
                self._give_back(self._over[0][0].run_id)
                yield self._over.pop(0)
            if time.monotonic() >= self._due:
                for run_id in list(self._own):
                    self._send(run_id)
                self._send_study()
                self._numbers |= fetch(self.root, self.bucket, self._own)
                self._due = time.monotonic() + self.every
        except (OSError, StoreError) as error:  # Runs go on meanwhile.
            print(f"The bucket does not answer, and is tried again: {shortened(str(error))}", flush=True)
            self._due = time.monotonic() + self.every

    def wait(self, seconds: float) -> None:
        """Blocks for so many seconds, or less if a run ends meanwhile."""
        self.inner.wait(seconds)

    def _send(self, run_id: str) -> None:
        claim, outbox = self._own[run_id]
        if self._lost(claim):
            return
        with outbox.sending() as parcel:
            for name in sorted(parcel.files, key=lambda name: name == RESULT_FILE):
                self.bucket.put(f"{run_id}/{name}", parcel.files[name])
            for name in parcel.removed:
                self.bucket.remove(f"{run_id}/{name}")
        self._pulse.tell(claim, parcel.progress)

    def _lost(self, claim: Claim) -> bool:
        """Whether another machine has taken over a run; if so, its lock is written here, which stops the run."""
        if self.bucket.get(claim.following) is None:
            return False
        owner = owner_of(self.bucket, claim.run_id, claim.number + 1) or {"host": "elsewhere"}
        write_json(RunFolder(self.root, claim.run_id).path / "lock.json", owner)
        return True

    def _give_back(self, run_id: str) -> None:
        """Sends the rest of a run that has ended here, and releases its claim."""
        self._send(run_id)
        claim, _ = self._own[run_id]
        self._pulse.remove(claim)
        claim.release()
        del self._own[run_id]

    def _complete(self) -> None:
        """Do what a killed bench left undone: send its finished runs, and remove their checkpoints."""
        sent = files_of(self.bucket.names())
        for run_id, files in sent.items():
            for name in files if RESULT_FILE in files else ():
                if name.startswith(_STEPS):
                    self.bucket.remove(f"{run_id}/{name}")
        for path in sorted(self.root.glob(f"*/{RESULT_FILE}")):
            run_id = path.parent.name
            whole = RunFolder(self.root, run_id).result() is not None
            if whole and RESULT_FILE not in sent.get(run_id, {}) and self._claimed(run_id):
                self._give_back(run_id)

    def _send_study(self) -> None:
        for name, content in read(self.root, STUDY).items():
            if self.bucket.get(name) != content:
                self.bucket.put(name, content)

    def stop(self) -> None:
        """Asks runs to write a checkpoint and leave, and sends what they leave behind."""
        self.inner.stop()
        for run_id in list(self._own):
            self._give_back(run_id)
        self._send_study()
        self._pulse.close()


def fetch(root: Path, bucket: Bucket, own: Collection[str] = (), *, study: bool = False) -> dict[str, int]:
    """Bring a folder up to date with a bucket: results, errors, claims as locks, and the study.

    Args:
        root: ``results/<suite>`` on this machine.
        bucket: Where.
        own: Ids of the runs that this process trains; their folders are left alone.
        study: Whether the study of the bucket replaces that of the folder.

    Returns:
        The number of the highest claim of every run.
    """
    names = bucket.names()
    claims, files = claims_of(names), files_of(names)
    root.mkdir(parents=True, exist_ok=True)
    for name in STUDY:
        wanted = study or not (root / name).exists()
        if wanted and name in names and (content := bucket.get(name)) is not None:
            write_bytes(root / name, content)
    for run_id in sorted({*claims, *files} - set(own)):
        _fetch_run(RunFolder(root, run_id), bucket, claims.get(run_id, 0), files.get(run_id, {}))
    return claims


def _fetch_run(run: RunFolder, bucket: Bucket, number: int, files: dict[str, str]) -> None:
    if run.result() is not None:
        return
    if RESULT_FILE in files:
        if read(run.path, [RESULT_FILE]).get(RESULT_FILE) == bucket.get(f"{run.run_id}/{RESULT_FILE}"):
            return  # It is damaged there, too.
        # A bench that was killed may have left a part of the checkpoints, which a finished run does not need.
        unpack(run.path, _content(bucket, run.run_id, [name for name in files if not name.startswith(_STEPS)]))
        (run.path / "lock.json").unlink(missing_ok=True)
        return
    if "error.json" in files:
        unpack(run.path, _content(bucket, run.run_id, [name for name in ("error.json", "spec.json") if name in files]))
    lock = run.path / "lock.json"
    owner = owner_of(bucket, run.run_id, number) if number else None
    if owner is None:
        lock.unlink(missing_ok=True)
    elif read_json(lock) != owner:
        run.path.mkdir(parents=True, exist_ok=True)
        write_json(lock, owner)


def _content(bucket: Bucket, run_id: str, names: Iterable[str]) -> Files:
    found = {name: bucket.get(f"{run_id}/{name}") for name in names}
    return {name: content for name, content in found.items() if content is not None}


class _Pulse(threading.Thread):
    """Writes heartbeats into claims, however long the upload of a checkpoint takes."""

    def __init__(self, every: float):
        super().__init__(daemon=True)
        self.every, self._beats = every, 0
        self._claims: dict[Claim, dict[str, Any]] = {}
        self._lock, self._done = threading.Lock(), threading.Event()

    def add(self, claim: Claim) -> None:
        """Starts the heartbeats of a claim."""
        with self._lock:
            self._claims[claim] = {}
        if not self.is_alive() and not self._done.is_set():
            self.start()

    def tell(self, claim: Claim, progress: Mapping[str, Any]) -> None:
        """Adds progress to the next heartbeats."""
        with self._lock:
            self._claims.get(claim, {}).update(progress)

    def remove(self, claim: Claim) -> None:
        """Ends the heartbeats of a claim; none is written after this returns."""
        with self._lock:
            self._claims.pop(claim, None)

    def run(self) -> None:
        """Writes heartbeats until closed."""
        while not self._done.wait(self.every):
            self._beats += 1
            with self._lock:
                for claim, progress in self._claims.items():
                    with contextlib.suppress(OSError):  # The next one may arrive.
                        claim.beat({"beat": self._beats, **progress})

    def close(self) -> None:
        """Stops all heartbeats."""
        self._done.set()
