"""What happens when the reader of the output leaves, as in ``mtlbench bench digits | head -1``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def reader_left(error: BaseException | None) -> bool:
    """Whether an error means that nobody reads the output; rich ends the process where Python raises."""
    if isinstance(error, SystemExit):
        return isinstance(error.__context__, BrokenPipeError)
    return isinstance(error, BrokenPipeError)


def silence() -> None:
    """Sends further output nowhere; Python would otherwise complain when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextmanager
def may_be_cut() -> Iterator[None]:
    """Encloses output after all work is done: a reader who leaves early changes nothing."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        if not reader_left(error):
            raise
        silence()
