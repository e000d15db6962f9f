"""The store: one folder per run, state on disk alone, results written last and atomically. Free of torch.

States of a run: ``todo`` (no folder, or nothing decisive in it), ``running`` (fresh lock), ``stale`` (lock of a dead
process: resumes from its checkpoint), ``failed`` (``error.json``), ``done`` (``result.json`` matches its spec).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtlbench.errors import StoreError
from mtlbench.runs.spec import RunSpec

FRESH_S = 60.0
"""A lock from another machine counts as alive for this many seconds after its last heartbeat."""


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically, see `write_text`."""
    write_text(path, json.dumps(record, indent=1, allow_nan=True))


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old or the new one, also after a power cut.

    Raises:
        StoreError: If the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoreError(
            f"Results must be writable. Writing {path} failed: {error.strerror or error}. "
            "Free space, mend permissions, or choose another folder with RESULTS=."
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
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


class RunFolder:
    """The folder of one run.

    Args:
        root: ``results/<suite>``.
        run_id: Name of the run.
    """

    def __init__(self, root: Path, run_id: str):
        self.root, self.run_id, self.path = root, run_id, root / run_id

    def spec(self) -> RunSpec | None:
        """Returns the stored specification."""
        record = read_json(self.path / "spec.json")
        return RunSpec.from_json(record) if record else None

    def result(self) -> dict[str, Any] | None:
        """Returns the result if the run is done: it parses, and its hash is that of the stored specification."""
        result, spec = read_json(self.path / "result.json"), read_json(self.path / "spec.json")
        return result if result and spec and result.get("hash") == spec.get("hash") else None

    def outcome(self) -> dict[str, Any]:
        """Returns what a plan gets of a finished run: its result, and as ``summary`` what its method tells of it."""
        return {**(self.result() or {}), "summary": read_json(self.path / "summary.json") or {}}

    def error(self) -> dict[str, Any] | None:
        """Returns why the run failed."""
        return read_json(self.path / "error.json")

    def progress(self) -> dict[str, Any]:
        """Returns the last heartbeat: step, steps and their time, as far as known."""
        return read_json(self.path / "lock.json") or {}

    def state(self) -> str:
        """Returns ``done``, ``running``, ``failed``, ``stale`` or ``todo``."""
        if self.result():
            return "done"
        lock = read_json(self.path / "lock.json")
        if lock:
            return "running" if _alive(lock) else "stale"
        if self.error():
            return "failed"
        return "stale" if any(self.path.glob("*.ckpt")) else "todo"

    def claim(self, spec: RunSpec) -> bool:
        """Takes the run for this process; False if it is done or another live process has it."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with _exclusive(self.root):
                if self.state() in ("done", "running"):
                    return False
                self.path.mkdir(exist_ok=True)
                (self.path / "error.json").unlink(missing_ok=True)
                for left in self.path.glob(".*.*"):  # Half-written files of a process that was killed.
                    left.unlink(missing_ok=True)
                if read_json(self.path / "spec.json") is None:
                    write_json(self.path / "spec.json", spec.to_json())
                self.beat()
        except OSError as error:
            raise StoreError(
                f"Results must be writable. {self.path}: {error.strerror or error}. "
                "Mend permissions or choose another folder with RESULTS=."
            ) from error
        return True

    def beat(self, **progress: Any) -> None:
        """Renews the lock."""
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "born": born(os.getpid()), "time": time.time()}
        write_json(self.path / "lock.json", {**owner, **progress})

    def release(self) -> None:
        """Gives the run up."""
        (self.path / "lock.json").unlink(missing_ok=True)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the result, which makes the run done, and gives it up."""
        write_json(self.path / "result.json", result)
        self.release()

    def fail(self, record: Mapping[str, Any]) -> None:
        """Records why the run failed and gives it up."""
        write_json(self.path / "error.json", record)
        self.release()


@contextlib.contextmanager
def _exclusive(root: Path) -> Iterator[None]:
    with (root / ".claims").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _alive(lock: Mapping[str, Any]) -> bool:
    if lock.get("host") == socket.gethostname():
        return born(int(lock.get("pid", 0))) == lock.get("born") is not None
    return time.time() - float(lock.get("time", 0)) < FRESH_S


def born(pid: int) -> str | None:
    """Returns what tells a process from a later one with the same number: its start time since boot."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _born_portable(pid)
    state, *fields = text.rsplit(")", 1)[1].split()
    return None if state == "Z" else fields[18]


def _born_portable(pid: int) -> str | None:
    if Path("/proc/self").exists():
        return None
    try:  # No /proc on this system: the number alone has to do.
        os.kill(pid, 0)
    except OSError:
        return None
    return str(pid)
