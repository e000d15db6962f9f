"""Errors whose messages state the rule, what was found, and the remedy; the exit codes; and safe output."""

from __future__ import annotations

import codecs
import contextlib
import difflib
import errno
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from enum import IntEnum
from pathlib import Path
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
    name = name if len(name) <= 100 else f"{name[:100]}…"
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return f"Unknown {what} {name!r}.{hint} Known: {', '.join(names) or 'none'}."


@contextlib.contextmanager
def foreign_code(action: str) -> Iterator[None]:
    """Enclose a call of code that a user wrote.

    Args:
        action: What the code does, as the subject of a sentence, for example ``"Importing my_module"``.

    Raises:
        MethodError: If the code raises anything but an `MtlbenchError`, with its type, message, file and line.
    """
    try:
        yield
    except MtlbenchError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise  # Not the code is at fault but the name that it was given.
        raise MethodError(
            f"Code that a suite names must run without errors. {action} raised {type(error).__name__}: "
            f"{shortened(str(error))}{place_of(error)}. Correct the code, or remove it from the suite."
        ) from error


def shortened(text: str) -> str:
    """Return a text on one line, cut after 500 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 500 else f"{line[:500]}…"


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


class InertStream:
    """A text stream that replaces `UNSAFE` characters before it passes text on.

    Whatever a command prints may hold text of others: a title, the name of a file, the message of an exception. With
    this stream in place no single ``print`` has to remember that.

    Attributes:
        beneath: The stream that receives the text. Rich writes to it, because colours are control characters too.
    """

    def __init__(self, beneath: Any):
        self.beneath = beneath

    def write(self, text: str) -> int:
        """Write a text and return its length."""
        self.beneath.write(inert(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)


@contextlib.contextmanager
def inert_output() -> Iterator[None]:
    """Pass standard output and standard error through `InertStream`, and write what their encoding lacks as ASCII."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ASCII)
    sys.stdout, sys.stderr = InertStream(sys.stdout), InertStream(sys.stderr)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def coloured_output() -> Any:
    """Return standard output for rich, which writes control characters of its own; give it only inert text."""
    return getattr(sys.stdout, "beneath", sys.stdout)


_ASCII = "mtlbench.ascii"
_SIGNS = {
    "−": "-", "–": "-", "…": "...", "±": "+-", "×": "x", "Δ": "D", "↑": "^", "↓": "v", "→": "->", "θ": "theta",
    "█": "#", "·": ".", "\N{REPLACEMENT CHARACTER}": "?",
}  # fmt: skip


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks: a minus sign must stay one, and no output may end a command."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_SIGNS.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in text), error.end


codecs.register_error(_ASCII, _in_ascii)


def place_of(error: BaseException) -> str:
    """Return file and line where an exception was raised, as ``" (file.py:12)"``; a user's own file if there is one."""
    libraries = (
        *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")),
        str(Path(__file__).parent),
    )
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(("<", *libraries))]
    return f" ({Path((own or frames)[-1].filename).name}:{(own or frames)[-1].lineno})" if frames else ""
