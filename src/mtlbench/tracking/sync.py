"""Sends what W&B logged offline: finds the files of a study, sends each run once, and goes on after an interruption."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mtlbench.runs.store import RunFolder
from mtlbench.tracking.wandb_client import marker_of

SEND_S = 600.0
"""Seconds that the sending of one run may take."""
_PLACE = re.compile(r"(offline-)?run-(\d{8}_\d{6})-(.+)")


@dataclass(frozen=True)
class Piece:
    """The file of one process that logged a run.

    Attributes:
        run: Id of the run.
        path: The file.
        began: When the process began, as W&B writes it.
    """

    run: str
    path: Path
    began: str

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
            piece = Piece(found[3], path, found[2])
            if piece.run not in newest or newest[piece.run].began < piece.began:
                newest[piece.run] = piece
    yield from newest.values()


def sent(root: Path) -> bool:
    """Return whether any run of a study is known to be on the server."""
    return any(piece.sent for piece in pieces(root))


def waiting(root: Path) -> tuple[list[Piece], int]:
    """Return the pieces that have to be sent, and how many runs still go on and are left for later."""
    unsent = [piece for piece in pieces(root) if not piece.sent]
    still = [piece for piece in unsent if RunFolder(root, piece.run).state() == "running"]
    return [piece for piece in unsent if piece not in still], len(still)


def send(piece: Piece) -> str:
    """Send one run with W&B's own command, and return why it failed, or ``""``.

    Sending a run again writes the same rows to the same places, so nothing is there twice after an interruption.
    """
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(piece.path)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SEND_S,
            stdin=subprocess.DEVNULL,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not finished after {SEND_S:.0f} s"
    if piece.sent:
        return ""
    said = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    return said[-1] if said else f"exit code {done.returncode}"
