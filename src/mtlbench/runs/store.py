"""The store: one folder per run. All state is on disk; results are written last and atomically. Needs no torch.

States of a run: ``todo`` (no folder, or nothing decisive in it), ``running`` (locked by a live process, see
`mtlbench.runs.liveness`), ``stale`` (locked by a dead one; the next process resumes from its checkpoint), ``failed``
(``error.json``, or a damaged result), ``done`` (a whole ``result.json``, see `RunFolder.result`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mtlbench.errors import StoreError, inert, path_part_fault
from mtlbench.runs import liveness, seal, shapes
from mtlbench.runs.spec import RunSpec

_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)(\.sha256)?")
_OLD_S = 7 * 86400.0
"""Age in seconds at which half-written files of other machines are swept: more than the clocks of two machines differ,
since some shared file systems take a file's time from the machine that writes it."""

RESULT_FILE = "result.json"
_DEPTH = 100
"""Levels of lists and objects that a record may have; what reads it may recurse."""


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
    """Writes a text file atomically, see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees either the old or the new content, even after a power cut.

    Raises:
        StoreError: If the folder cannot be written or the disk is full.
    """
    beside = temporary(path)
    try:
        with beside.open("wb") as file:
            file.write(content)
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
    """Returns a JSON object, or None if the file is absent, torn, or nested too deeply for its readers."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and _is_flat(found) else None


def _is_flat(value: Any) -> bool:
    level = [value]
    for _ in range(_DEPTH):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list))]
        level = [each for values in inner for each in values]
        if not level:
            return True
    return False


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
        """Returns the stored specification, or None if it is absent, damaged, or of another run."""
        record = read_json(self.path / "spec.json")
        try:
            found = RunSpec.from_json(record) if record else None
        except TypeError:  # Keys are missing, others are there, or values are of another kind.
            return None
        if found is None or record is None or not shapes.text(found.method.get("name")):
            return None
        return found if (found.hash, found.run_id) == (record.get("hash"), self.run_id) else None

    def mend(self, spec: RunSpec) -> bool:
        """Write a damaged specification again from the bench's own; return whether that was needed."""
        if self.spec() is not None:
            return False
        write_json(self.path / "spec.json", spec.to_json())
        return True

    def result(self) -> dict[str, Any] | None:
        """Returns the result if the run is done: the record is whole, of this run, and so are the files it names."""
        record = read_json(self.path / RESULT_FILE)
        return record if record is not None and not self._fault(record) else None

    def damage(self) -> str:
        """Return what is wrong with a result that exists, or ``""``; large files are compared by size alone."""
        path = self.path / RESULT_FILE
        if not os.path.lexists(path):
            return ""
        record = read_json(path)
        return "it is not a readable JSON object" if record is None else self._fault(record)

    def _fault(self, record: Mapping[str, Any]) -> str:
        if not shapes.RESULT(record) or not shapes.SEALED(record):
            return "its values are not of the kinds that a result has"
        if seal.broken(record):
            return "its content does not match its digest: something changed it after it was written"
        if not record["hash"].startswith(self.run_id.rpartition("-")[2]):
            return f"it is of another run, whose hash begins with {inert(record['hash'][:8])}"
        return next(seal.files_faults(record, self.path, deep=False), "")

    def outcome(self) -> dict[str, Any]:
        """Return what a plan receives for a finished run: its result, and the method's record as ``summary``."""
        return {**(self.result() or {}), "summary": read_json(self.path / "summary.json") or {}}

    def error(self) -> dict[str, Any] | None:
        """Returns why the run failed, safe to print: the file may come from someone else."""
        path = self.path / "error.json"
        if (record := read_json(path)) is not None:
            return inert(record)
        if os.path.lexists(path):
            return {"type": "Error", "message": f"The run failed, and {path} is damaged, so the reason is lost."}
        if damage := self.damage():
            return {"type": "DamagedResult", "message": self.told(damage)}
        return None

    def told(self, damage: str) -> str:
        """Returns the message about a damaged result, with the remedies."""
        return (
            f"A result counts only as it was written. {self.path / RESULT_FILE}: {damage}. Put back the file from a "
            "copy, or train the run again with --retry (RETRY=1)."
        )

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
        if lock and liveness.alive(self.path / "lock.json", lock):
            return "running"
        if self.error() is not None:  # Also beside the lock of a rank that was killed because another one failed.
            return "failed"
        return "stale" if lock or any(self.path.glob("*.ckpt")) else "todo"

    def claim(self, spec: RunSpec) -> bool:
        """Claim the run for this process; return False if it is done or another live process holds it."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with exclusive(self.root):
                if self.state() in ("done", "running"):
                    return False
                self.path.mkdir(exist_ok=True)
                self._set_aside()
                for left in self.path.glob(".*.*"):  # The owner is dead, so nobody will finish these files.
                    left.unlink(missing_ok=True)
                self.mend(spec)
                self.beat()
        except OSError as error:
            raise StoreError(
                f"Results must be writable. {self.path}: {error.strerror or error}. "
                "Change the permissions, or choose another folder with RESULTS=."
            ) from error
        return True

    def _set_aside(self) -> None:
        """Remove what says that the run failed. A damaged result is kept under another name."""
        if damage := self.damage():
            kept = self.path / "result.damaged.json"
            os.replace(self.path / RESULT_FILE, kept)
            print(f"{RESULT_FILE} of {self.run_id}: {damage}. It is kept as {kept.name}, and the run is trained again.")
        (self.path / "error.json").unlink(missing_ok=True)

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

    def finish(self, result: Mapping[str, Any], files: Iterable[str] = ()) -> None:
        """Write the result, which makes the run done, and remove the lock.

        Args:
            result: Its content.
            files: Names of the files in the run's folder that belong to it; they must be complete.
        """
        write_json(self.path / RESULT_FILE, seal.sealed(result, self.path, files))
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
        StoreError: If there is no such run, it is not done, or its files are damaged.
    """
    if not os.path.isdir(folder):
        raise StoreError(
            f"{folder} is not a run's folder; runs are in results/<suite>/<run_id>. `mtlbench status` lists them."
        )
    place = Path(os.path.abspath(folder))  # Within its own folder a run is ".".
    run = RunFolder(place.parent, place.name)
    spec, result = run.spec(), run.result()
    if spec is None and not (run.path / "spec.json").exists():
        raise StoreError(
            f"A run's folder holds spec.json, and {folder} does not. Give results/<suite>/<run_id>; `mtlbench status` "
            "lists runs."
        )
    if damage := run.damage():
        raise StoreError(run.told(damage))
    if result is None:
        raise StoreError(f"A run must be done to be loaded. {folder} is {run.state()}. `mtlbench status` lists runs.")
    if spec is None or spec.hash != result["hash"]:
        raise StoreError(
            f"A run's specification must be the one that its result names. {folder / 'spec.json'} is damaged. Run the "
            "bench again, which writes it anew and trains nothing."
        )
    return spec, result


@contextlib.contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Hold the lock of a results folder, so that one process at a time changes what several may change."""
    with (root / ".claims").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
