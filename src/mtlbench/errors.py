"""Errors that tell the user the rule, the fact that was found, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MtlbenchError(Exception):
    """Base of every error that a user can mend. The command line prints its message without a traceback."""


class SuiteError(MtlbenchError):
    """A suite file, an override or a name in them is wrong. Carries every fault found, not only the first."""


class DataError(MtlbenchError):
    """Data is absent or unreadable. The message names the file or folder and the way to get or mend it."""


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
