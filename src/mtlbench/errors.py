"""Errors whose messages state the rule, what was found, and the remedy; and the exit codes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, which a terminal obeys; overrides of the writing direction; halves of surrogate pairs."""


class ExitCode(IntEnum):
    """Exit codes of the commands and of the processes of a run, in one place.

    A command ends with DONE, FAILED, REFUSED, INTERRUPTED or BROKEN_PIPE. A run's process ends with DONE, FAILED,
    NOT_OURS or STOPPED; its outcome is on disk in every case, and the code only saves reading it.
    """

    DONE = 0
    FAILED = 1
    REFUSED = 2
    NOT_OURS = 3
    STOPPED = 4
    INTERRUPTED = 130
    BROKEN_PIPE = 141

    @classmethod
    def described(cls) -> str:
        """Returns the codes of commands with their meaning, for ``--help``."""
        return "; ".join(f"{code.value} {text}" for code, text in _MEANINGS.items()) + "."


_MEANINGS = {
    ExitCode.DONE: "everything requested is done",
    ExitCode.FAILED: "a run or a check failed",
    ExitCode.REFUSED: "the request or its data is invalid, and nothing was trained",
    ExitCode.INTERRUPTED: "interrupted, the same command resumes",
    ExitCode.BROKEN_PIPE: "the program that reads the output exited first, as in `bench | head`",
}


class MtlbenchError(Exception):
    """Base of every error that a user can fix. The command line prints its message without a traceback."""


class SuiteError(MtlbenchError):
    """A suite file, an override or a name in them is wrong. Carries every fault found, not only the first."""


class DataError(MtlbenchError):
    """Data is absent or unreadable. The message names the file or folder and how to obtain or repair it."""


class MethodError(MtlbenchError):
    """A method or balancer breaks its contract or was given a value outside its range."""


class StoreError(MtlbenchError):
    """The results folder cannot be read or written."""


class DivergedError(MtlbenchError):
    """A task's loss became NaN or infinite."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Returns a message for an unknown name, with near names first.

    Args:
        what: The kind of thing, for example ``"method"``.
        name: The name that was not found.
        known: Every valid name.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"Unknown {what} {name!r}.{hint} Known: {', '.join(names) or 'none'}."


def path_part_fault(text: str) -> str | None:
    """Returns the end of a sentence that says why a text cannot be the name of a file or folder, or None if it can."""
    plain = text.isprintable() and text == text.strip() and not set(text) & set("/\\")
    if plain and text and not text.startswith(".") and len(text.encode()) <= 100:
        return None
    shown = repr(text if len(text) <= 100 else f"{text[:100]}…")
    return (
        "must be one plain part of a path: 1 to 100 bytes without slashes, control characters, a dot at the beginning "
        f"or spaces around it. Found {shown}."
    )


def inert(value: Any) -> Any:
    """Return a text or JSON value with U+FFFD in place of `UNSAFE` characters, for text that others may have written.

    Newlines and tabs stay. Results, suites and exception messages may all hold such text.
    """
    if isinstance(value, str):
        return UNSAFE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, list):
        return [inert(item) for item in value]
    return {inert(key): inert(item) for key, item in value.items()} if isinstance(value, dict) else value
