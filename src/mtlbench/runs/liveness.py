"""Whether the process that holds a lock is alive, on this machine or another. Needs no torch.

A lock names its owner (machine, process id, start of the process) and counts the owner's heartbeats. An owner on this
machine is looked up in the process table. An owner elsewhere counts as alive while its lock keeps changing, as timed by
the observer alone. Clocks of two machines are never compared, so a wrong clock does no harm.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

FRESH_S = 60.0
"""A lock from another machine counts as dead once it has not changed for this many seconds of watching."""

_SEEN: dict[Path, tuple[str, float, bool]] = {}
"""Locks of other machines as this process saw them: content, time of its last change, whether it ever changed."""


@cache
def machine() -> str:
    """Return an identifier of this machine that also distinguishes containers with the same host name."""
    parts = [socket.gethostname()]
    try:
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text()[:8], os.readlink("/proc/self/ns/pid")[5:-1]]
    except OSError:
        pass  # Without /proc only the host name is known.
    return "/".join(parts)


def owner(beats: int) -> dict[str, Any]:
    """Returns a lock's record of this process, after so many heartbeats."""
    return {"host": machine(), "pid": os.getpid(), "born": born(os.getpid()), "beat": beats}


def is_own(lock: Mapping[str, Any]) -> bool:
    """Whether this process wrote a lock."""
    return (lock.get("host"), lock.get("pid")) == (machine(), os.getpid())


def alive(path: Path, lock: Mapping[str, Any]) -> bool:
    """Whether the owner of a lock is alive; one elsewhere is until its lock stays unchanged for `FRESH_S`.

    Args:
        path: File of the lock.
        lock: Its content.
    """
    if lock.get("host") == machine():
        pid = lock.get("pid")
        return isinstance(pid, int) and born(pid) == lock.get("born") is not None
    content, now = json.dumps(lock, sort_keys=True), time.monotonic()
    seen, since, changed = _SEEN.get(path, (content, now, False))
    if seen != content:
        since, changed = now, True
    _SEEN[path] = content, since, changed
    return now - since < FRESH_S


def undecided(path: Path) -> bool:
    """Whether a lock from elsewhere has not changed since it was first seen, less than `FRESH_S` ago."""
    _, since, changed = _SEEN.get(path, ("", -FRESH_S, False))
    return not changed and time.monotonic() - since < FRESH_S


def born(pid: int) -> str | None:
    """Return the start time of a process since boot, which later processes of its id do not share; None if ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _born_portable(pid)
    state, *fields = text.rsplit(")", 1)[1].split()
    return None if state == "Z" else fields[18]


def _born_portable(pid: int) -> str | None:
    if Path("/proc/self").exists():
        return None
    try:  # Without /proc only the process id is known.
        os.kill(pid, 0)
    except (OSError, OverflowError):
        return None
    return str(pid)
