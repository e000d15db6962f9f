"""Files of runs on their way between machines that share no folder. Needs no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlbench.errors import path_part_fault
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RESULT_FILE, RunFolder, write_bytes

_STAYS = ("lock.json",)
"""A lock belongs to the folder that it is in: each side has its own."""

Files = dict[str, bytes]


@dataclass(frozen=True)
class Parcel:
    """What a node sends about a run while it trains there, and when it has ended.

    Attributes:
        code: Exit code of the run, or None while it lasts.
        files: Files of the run's folder that are new or have changed, by name.
        removed: Names of files that are gone.
        log: What the run has printed since the last parcel.
        progress: The run's last heartbeat.
    """

    code: int | None = None
    files: Files = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    log: bytes = b""
    progress: Mapping[str, Any] = field(default_factory=dict)


class Outbox:
    """Packs what has changed in a run's folder since the last parcel.

    Args:
        run: The folder on this machine.
        log: File of what the run prints.
    """

    def __init__(self, run: RunFolder, log: Path):
        self.run, self.log = run, log
        self._sent: dict[str, tuple[int, int]] = {}
        self._read = 0

    def packed(self, code: int | None = None) -> Parcel:
        """Returns the next parcel."""
        files, removed = self._changes()
        progress = self.run.progress()
        steps: dict[str, Any] = {key: progress[key] for key in ("step", "steps") if key in progress}
        return Parcel(code, files, removed, self._news(), steps)

    @contextlib.contextmanager
    def sending(self) -> Iterator[Parcel]:
        """Yields the next parcel; if sending it fails, its files are in the next one again."""
        sent, read_so_far = dict(self._sent), self._read
        try:
            yield self.packed()
        except BaseException:
            self._sent, self._read = sent, read_so_far
            raise

    def _changes(self) -> tuple[Files, tuple[str, ...]]:
        found: Files = {}
        # From the last name to the first, so that `best.ckpt` is never older than the checkpoint that counts on it.
        names = sorted(names_of(self.run.path), reverse=True)
        for name in names:
            path = self.run.path / name
            try:
                about = path.stat()
                stamp = about.st_size, about.st_mtime_ns
                if self._sent.get(name) != stamp:
                    found[name] = path.read_bytes()
                    self._sent[name] = stamp
            except FileNotFoundError:  # An old checkpoint, removed meanwhile.
                continue
        removed = tuple(name for name in self._sent if name not in names)
        for name in removed:
            del self._sent[name]
        return found, removed

    def _news(self) -> bytes:
        try:
            with self.log.open("rb") as file:
                file.seek(self._read)
                news = file.read()
        except FileNotFoundError:
            return b""
        self._read += len(news)
        return news


def names_of(folder: Path) -> list[str]:
    """Returns the names of the files of a run's folder that may travel; half-written ones do not."""
    return [path.name for path in folder.glob("[!.]*") if path.is_file() and path.name not in _STAYS]


def read(folder: Path, names: Iterable[str]) -> Files:
    """Returns the content of files by name; those that are gone are left out."""
    found = {}
    for name in names:
        try:
            found[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
    return found


def unpack(folder: Path, files: Mapping[str, bytes], removed: Iterable[str] = ()) -> None:
    """Write files into a run's folder, the result last, since it says that all others are there.

    Raises:
        StoreError: If the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(files, key=lambda name: name == RESULT_FILE):
        if not path_part_fault(name):
            write_bytes(folder / name, files[name])
    for name in removed:
        if not path_part_fault(name):
            (folder / name).unlink(missing_ok=True)


def sources_of(spec: RunSpec) -> list[str]:
    """Returns the ids of the finished runs that a run reads: the one it starts from, and its sources."""
    start = [spec.start["run"]] if spec.start else []
    return list(dict.fromkeys([*start, *(about["run"] for about in (spec.sources or {}).values())]))
