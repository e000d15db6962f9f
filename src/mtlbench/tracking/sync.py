"""Sends what W&B logged offline: finds the files of a study, sends each run once, and goes on after an interruption."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mtlbench.runs.store import RunFolder
from mtlbench.tracking.wandb_client import marker_of

SEND_S = 600.0
"""Seconds that the sending of one run may take."""
_PLACE = re.compile(r"(offline-)?run-(\d{8}_\d{6})-.+")


@dataclass(frozen=True)
class Piece:
    """The file of one process that logged a run.

    Attributes:
        run: Id of the run.
        path: The file.
        began: When the process began, as W&B writes it.
        offline: Whether it was logged offline.
    """

    run: str
    path: Path
    began: str
    offline: bool

    @property
    def begun(self) -> bool:
        """Whether the server may have a part of it: it was logged online, or its sending was interrupted."""
        return not self.offline or self.path.with_name(f"{self.path.name}.syncstate").exists()

    @property
    def sent(self) -> bool:
        """Whether the server has all of it."""
        return marker_of(self.path).exists()


def pieces(root: Path) -> Iterator[Piece]:
    """Yield the newest piece of every run of a study.

    A process that resumes a run offline logs all of its rows again, so the newest piece holds the older ones.

    Args:
        root: ``results/<suite>``.
    """
    newest: dict[str, Piece] = {}
    for path in sorted([*root.glob("wandb/*/*.wandb"), *root.glob("*/wandb/*/*.wandb")]):
        if found := _PLACE.fullmatch(path.parent.name):
            # The file names the run. W&B adds a number to the folder of a process that began in the same second.
            piece = Piece(path.stem.removeprefix("run-"), path, found[2], bool(found[1]))
            if piece.run not in newest or newest[piece.run].began <= piece.began:
                newest[piece.run] = piece
    yield from newest.values()


def sent(root: Path) -> bool:
    """Return whether any run of a study is known to be on the server."""
    return any(piece.sent for piece in pieces(root))


def waiting(root: Path) -> tuple[list[Piece], int]:
    """Return the pieces that have to be sent, and how many runs are not done and are left for later.

    A run that goes on later logs its rows again, and the server would have those of today twice.
    """
    unsent = [piece for piece in pieces(root) if not piece.sent]
    open_ = [p for p in unsent if (root / p.run).is_dir() and RunFolder(root, p.run).state() != "done"]
    return [piece for piece in unsent if piece not in open_], len(open_)


def send(piece: Piece) -> str:
    """Send one run of which the server has nothing with W&B's own command; return why it failed, or ``""``."""
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    command = [sys.executable, "-m", "wandb", "sync", str(piece.path)]
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment)
        try:
            code = process.wait(SEND_S)
        except BaseException as error:
            _end(process)
            if isinstance(error, subprocess.TimeoutExpired):
                return f"not finished after {SEND_S:.0f} s"
            raise
        said.seek(0)
        lines = [line.strip() for line in said if line.strip()]
    if piece.sent:
        return ""
    return lines[-1] if lines else f"exit code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and the helper that it started, which would go on sending beside the next attempt."""
    for number in (*_children(process.pid), process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.wait()


def _children(parent: int) -> list[int]:
    """Return the processes that a process has started; they are in sessions of their own."""
    try:
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # Without ps, the helper notices by itself, a little later.
        return []
    pairs = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, ppid in pairs if int(ppid) == parent]
