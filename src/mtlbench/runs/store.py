"""The store: one folder per run. All state is on disk; results are written last and atomically. Needs no torch.

States of a run: ``todo`` (no folder, or nothing decisive in it), ``running`` (locked by a live process, see
`mtlbench.runs.liveness`), ``stale`` (locked by a dead one; the next process resumes from its checkpoint), ``failed``
(``error.json``), ``done`` (``result.json`` matches its spec).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtlbench.errors import StoreError, inert, path_part_fault
from mtlbench.runs import liveness, shapes
from mtlbench.runs.spec import RunSpec

_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)(\.sha256)?")
_OLD_S = 3600.0
"""Age in seconds, by the clock of the file system, at which half-written files of other machines are swept."""


def temporary(path: Path) -> Path:
    """Returns where this process writes a file before it renames it to ``path``."""
    return path.with_name(f".{path.name}.{_tag()}-{os.getpid()}")


def sweep(folder: Path) -> None:
    """Remove the half-written files that killed processes left in a folder; those of live processes stay."""
    for path in folder.glob(".*"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None:
            continue
        with contextlib.suppress(OSError):
            ended = liveness.born(int(found[2])) is None if found[1] == _tag() else _age(path) > _OLD_S
            if ended:
                path.unlink()


def _age(path: Path) -> float:
    probe = temporary(path.with_name("age"))
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now - path.stat().st_mtime


def _tag() -> str:
    return hashlib.sha256(liveness.machine().encode()).hexdigest()[:8]


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically, see `write_text`."""
    write_text(path, json.dumps(record, indent=1, allow_nan=True))


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees either the old or the new content, even after a power cut.

    Raises:
        StoreError: If the folder cannot be written or the disk is full.
    """
    beside = temporary(path)
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise StoreError(
            f"Results must be writable. Writing {path} failed: {error.strerror or error}. "
            "Free space, change the permissions, or choose another folder with RESULTS=."
        ) from error


def sync_folder(folder: Path) -> None:
    """Makes a rename in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns a JSON object, or None if the file is absent or torn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class RunFolder:
    """The folder of one run.

    Args:
        root: ``results/<suite>``.
        run_id: Name of the run.

    Raises:
        StoreError: If the name would lead out of ``root``.
    """

    def __init__(self, root: Path, run_id: str):
        if fault := path_part_fault(run_id):
            raise StoreError(f"The id of a run {fault}")
        self.root, self.run_id, self.path = root, run_id, root / run_id
        self._beats = 0

    def spec(self) -> RunSpec | None:
        """Returns the stored specification, or None if it is absent or damaged."""
        record = read_json(self.path / "spec.json")
        try:
            return RunSpec.from_json(record) if record else None
        except TypeError:  # Keys are missing, or others are there.
            return None

    def result(self) -> dict[str, Any] | None:
        """Returns the result if the run is done: it is whole, and its hash is that of the stored specification."""
        result, spec = read_json(self.path / "result.json"), read_json(self.path / "spec.json")
        same = result and spec and result.get("hash") == spec.get("hash")
        return result if same and shapes.RESULT(result) else None

    def outcome(self) -> dict[str, Any]:
        """Return what a plan receives for a finished run: its result, and the method's record as ``summary``."""
        return {**(self.result() or {}), "summary": read_json(self.path / "summary.json") or {}}

    def error(self) -> dict[str, Any] | None:
        """Returns why the run failed, safe to print: the file may come from someone else."""
        return inert(read_json(self.path / "error.json"))

    def progress(self) -> dict[str, Any]:
        """Return the last heartbeat: step, steps and their owner, as far as known; steps are whole numbers."""
        lock = read_json(self.path / "lock.json") or {}
        whole = isinstance(lock.get("step"), int) and isinstance(lock.get("steps"), int)
        return lock if whole else {key: value for key, value in lock.items() if key not in ("step", "steps")}

    def state(self) -> str:
        """Returns ``done``, ``running``, ``failed``, ``stale`` or ``todo``."""
        if self.result():
            return "done"
        lock = read_json(self.path / "lock.json")
        if lock:
            return "running" if liveness.alive(self.path / "lock.json", lock) else "stale"
        if self.error():
            return "failed"
        return "stale" if any(self.path.glob("*.ckpt")) else "todo"

    def claim(self, spec: RunSpec) -> bool:
        """Claim the run for this process; return False if it is done or another live process holds it."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with exclusive(self.root):
                if self.state() in ("done", "running"):
                    return False
                self.path.mkdir(exist_ok=True)
                (self.path / "error.json").unlink(missing_ok=True)
                for left in self.path.glob(".*.*"):  # The owner is dead, so nobody will finish these files.
                    left.unlink(missing_ok=True)
                if read_json(self.path / "spec.json") is None:
                    write_json(self.path / "spec.json", spec.to_json())
                self.beat()
        except OSError as error:
            raise StoreError(
                f"Results must be writable. {self.path}: {error.strerror or error}. "
                "Change the permissions, or choose another folder with RESULTS=."
            ) from error
        return True

    def undecided(self) -> bool:
        """Whether another machine holds the run and was not watched long enough to know if it is alive."""
        return liveness.undecided(self.path / "lock.json")

    def clear_lock(self) -> None:
        """Remove the lock of an owner that this process found dead, so that a new process can claim the run at once."""
        with exclusive(self.root):
            if self.state() == "stale":
                (self.path / "lock.json").unlink(missing_ok=True)

    def lost(self) -> bool:
        """Whether another process has taken the run over, as it may after this one was suspended for too long."""
        lock = read_json(self.path / "lock.json")
        return lock is not None and not liveness.is_own(lock)

    def beat(self, **progress: Any) -> None:
        """Renew the lock with the current progress."""
        self._beats += 1
        write_json(self.path / "lock.json", {**liveness.owner(self._beats), **progress})

    def release(self) -> None:
        """Remove the lock."""
        (self.path / "lock.json").unlink(missing_ok=True)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result, which makes the run done, and remove the lock."""
        write_json(self.path / "result.json", result)
        self.release()

    def fail(self, record: Mapping[str, Any]) -> None:
        """Record why the run failed and remove the lock; the process may have ended before it made the folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "error.json", record)
        self.release()


def finished_run(folder: Path) -> tuple[RunSpec, dict[str, Any]]:
    """Return specification and result of a finished run.

    Args:
        folder: ``results/<suite>/<run_id>``.

    Raises:
        StoreError: If there is no such run, or it is not done.
    """
    if not os.path.isdir(folder):
        raise StoreError(
            f"{folder} is not a run's folder; runs are in results/<suite>/<run_id>. `mtlbench status` lists them."
        )
    place = Path(os.path.abspath(folder))  # Within its own folder a run is ".".
    run = RunFolder(place.parent, place.name)
    spec, result = run.spec(), run.result()
    if spec is None:
        raise StoreError(
            f"A run's folder holds spec.json, and {folder} does not. Give results/<suite>/<run_id>; `mtlbench status` "
            "lists runs."
        )
    if result is None:
        raise StoreError(f"A run must be done to be loaded. {folder} is {run.state()}. `mtlbench status` lists runs.")
    return spec, result


@contextlib.contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Hold the lock of a results folder, so that one process at a time changes what several may change."""
    with (root / ".claims").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
