"""A folder of bounded size that keeps the files used last, shared by all processes of a machine.

Nothing is locked for reading: a file that another process removes is fetched again. So the folder never exceeds its
limit, however many runs share it, and none of them waits for another. With too little space, they fetch more often.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mtlbench.errors import DataError

BLOCK = 4096
"""Bytes in which disks are given out."""

SLOTS = 256
"""Lock files: two processes that want the same file wait for one fetch, others seldom meet."""

TRIES = 8
"""How often a file is asked for that other processes remove again and again."""

RECENT = 5.0
MARKS = 10_000
"""Times of use that a process remembers."""

DRAFT = ".draft"
LOCKS = ".locks"


class Space:
    """Files by name, of which those used longest ago give way.

    Args:
        folder: Where they lie; made if absent. Nothing else may lie there.
        limit: Bytes that the files may take on the disk, all together.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self._marked: dict[str, float] = {}

    def get(self, name: str, size: int, fetch: Callable[[], bytes]) -> Path:
        """Returns a file, which is fetched if it is not there, and marks it as used.

        Another process may remove it at any time. Whoever fails to open it asks again.

        Args:
            name: Its name; equal names have equal content.
            size: Its bytes.
            fetch: Returns its content.

        Raises:
            DataError: It is larger than the limit, or the disk is full.
        """
        path = self.folder / name
        if not _touched(path, size):
            with self._locked(_slot(name)):
                if not _touched(path, size):
                    self._put(path, fetch())
        return path

    def read(self, name: str, size: int, fetch: Callable[[], bytes], offset: int, into: memoryview) -> None:
        """Reads a part of a file, which is fetched if it is not there.

        It is opened for each part, so that no process keeps a removed file on the disk.

        Args:
            name: As for `get`.
            size: As for `get`.
            fetch: As for `get`.
            offset: Where the part begins.
            into: Takes its bytes.

        Raises:
            DataError: As for `get`; or other processes remove the file again and again.
        """
        for _ in range(TRIES):
            try:
                file = os.open(self.folder / name, os.O_RDONLY)
            except OSError:
                self.get(name, size, fetch)
                continue
            try:
                whole = os.preadv(file, [into], offset) == len(into)
            finally:
                os.close(file)
            if whole:
                self._use(name)
                return
            self.get(name, size, fetch)
        raise DataError(
            f"The local space holds what all runs on a machine read at the same time. {name} was removed {TRIES} times "
            "before it could be read. Raise data.options.space, or train fewer runs at once."
        )

    def fill(self, name: str, size: int, fetch: Callable[[], bytes]) -> None:
        """Fetches a file unless it is there, or on its way: then nothing happens."""
        path = self.folder / name
        if _complete(path, size):
            return
        with contextlib.suppress(BlockingIOError), self._locked(_slot(name), wait=False):
            if not _complete(path, size):
                self._put(path, fetch())

    def used(self) -> int:
        """Returns the bytes that the files take on the disk."""
        return sum(size for _, size, _ in self._files())

    def _use(self, name: str) -> None:
        """Marks a file as used, at most once in `RECENT` seconds."""
        now = time.monotonic()
        if now - self._marked.get(name, 0.0) > RECENT:
            if len(self._marked) > MARKS:
                self._marked.clear()
            self._marked[name] = now
            _touched(self.folder / name, 0)

    def _put(self, path: Path, content: bytes) -> None:
        taken = room_of(len(content))
        if taken > self.limit:
            raise DataError(
                f"The local space holds at least one file of a shard. {path.name} takes {taken:,} bytes of "
                f"{self.limit:,}. Raise data.options.space, or write smaller shards (data.options.shard)."
            )
        with self._locked("all"):
            self._make_room(taken)
            draft = self.folder / DRAFT
            try:
                draft.write_bytes(content)
                draft.replace(path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    draft.unlink()
                raise DataError(
                    f"The local space of streamed data must be writable, and the disk must hold it. {self.folder}: "
                    f"{error}. Lower data.options.space, or name another folder with MTLBENCH_CACHE."
                ) from error

    def _make_room(self, size: int) -> None:
        """Removes files until ``size`` more bytes fit, those used longest ago first."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / DRAFT).unlink()  # of a process that was killed
        files = sorted(self._files())
        room = self.limit - sum(taken for _, taken, _ in files)
        for _, taken, path in files:
            if room >= size:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            room += taken

    def _files(self) -> list[tuple[int, int, str]]:
        """Returns the time of the last use, the bytes on the disk, and the path of every file."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    if entry.is_file():
                        taken = max(status.st_blocks * 512, room_of(status.st_size))
                        found.append((status.st_mtime_ns, taken, entry.path))
        return found

    @contextlib.contextmanager
    def _locked(self, slot: str, *, wait: bool = True) -> Iterator[None]:
        """Holds a lock that processes and threads exclude each other by.

        Raises:
            BlockingIOError: Another one holds it, and it is not waited for.
            DataError: The folder cannot be made.
        """
        place = self.folder / LOCKS
        try:
            place.mkdir(parents=True, exist_ok=True)
            file = (place / slot).open("w")
        except OSError as error:
            raise DataError(
                f"Streamed data need a local folder. {self.folder}: {error}. Name another one with MTLBENCH_CACHE."
            ) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield


def room_of(size: int) -> int:
    """Returns the bytes of the disk that a file takes."""
    return -(-size // BLOCK) * BLOCK


def _slot(name: str) -> str:
    return f"{int(hashlib.blake2b(name.encode(), digest_size=4).hexdigest(), 16) % SLOTS:03d}"


def _complete(path: Path, size: int) -> bool:
    """Returns whether a whole file is there: a power failure may leave an empty one."""
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _touched(path: Path, size: int) -> bool:
    """Marks a file as used, and returns whether it is there and whole."""
    try:
        os.utime(path)
    except OSError:
        return False
    return _complete(path, size)
