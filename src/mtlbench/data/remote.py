"""Files below a URL, read whole: tried again where the connection fails, and checked against their sums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from typing import Any

from mtlbench.errors import DataError, shortened

ATTEMPTS = 5
PAUSE = 1.0
"""Seconds before the second attempt; doubled before each further one."""

PASSING = (408, 429)
"""Refusals of a server that may be others next time; so are all answers from 500."""


def checksum(content: bytes) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


class Remote:
    """Files below a URL of any kind that fsspec knows, or in a folder.

    Args:
        url: For example ``s3://bucket/data``, ``file:///data`` or a path.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None

    def read(self, name: str, sha256: str | None = None) -> bytes:
        """Returns the content of a file.

        Args:
            name: Its name below the URL.
            sha256: Its checksum, where known.

        Raises:
            DataError: It does not exist, cannot be reached, or differs from its checksum, also after several attempts.
        """
        fault = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                fs, base = self._system()
                content = bytes(fs.cat_file(f"{base}/{name}"))
            except DataError:
                raise
            except Exception as error:  # Libraries of stores have errors of their own.
                fault = f"{type(error).__name__}: {shortened(str(error))}"
                if _lasting(error):
                    break
                continue
            if sha256 is None or checksum(content) == sha256:
                return content
            fault = f"{len(content)} bytes came, whose SHA-256 is not the one that was written, {sha256[:12]}…"
        raise DataError(
            f"Data in shards must be there, complete and unchanged. {self.url}/{name}: {fault} ({attempt + 1} "
            "attempt(s)). Check address, credentials and connection, or write them again with `mtlbench data SUITE "
            "--shard URL`. The bench with --retry (RETRY=1) then resumes from the last checkpoint."
        )

    def exists(self, name: str) -> bool:
        """Returns whether there is a file of this name.

        Raises:
            DataError: The URL cannot be reached.
        """
        fs, base = self._system()
        with self._writing(name):
            return bool(fs.exists(f"{base}/{name}"))

    def write(self, name: str, content: bytes) -> None:
        """Writes a file.

        Raises:
            DataError: It cannot be written.
        """
        fs, base = self._system()
        path = f"{base}/{name}"
        with self._writing(name):
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(path, content)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Libraries of stores have errors of their own.
            raise DataError(
                f"Shards are written below a URL. {self.url}/{name}: {type(error).__name__}: {shortened(str(error))}. "
                "Check address, rights and space; the same command goes on with the shards that are missing."
            ) from error

    def _system(self) -> tuple[Any, str]:
        """Returns the file system, opened by this process: connections do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                from fsspec.core import url_to_fs

                self._opened = (os.getpid(), *url_to_fs(self.url))
            except (ImportError, ValueError, OSError) as error:
                raise DataError(
                    f"A source of data is a folder or a URL that fsspec can open. {self.url}: {shortened(str(error))}. "
                    'Correct data.options.source, or install the package of its kind: for s3://, "mtlbench[s3]".'
                ) from error
        return self._opened[1], self._opened[2]


def _lasting(error: Exception) -> bool:
    """Returns whether another attempt would fail, too."""
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in PASSING
    return refused or isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError))
