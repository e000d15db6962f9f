"""Handles a reader that closes the output early, as in ``mtlbench bench digits | head -1``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def reader_left(error: BaseException | None) -> bool:
    """Whether an error means that nobody reads the output: rich exits where Python raises BrokenPipeError."""
    if isinstance(error, SystemExit):
        return isinstance(error.__context__, BrokenPipeError)
    return isinstance(error, BrokenPipeError)


def silence() -> None:
    """Discard further output; Python would otherwise report an error when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextmanager
def may_be_cut() -> Iterator[None]:
    """Enclose output after all work is done, so that a reader who leaves early changes nothing."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        if not reader_left(error):
            raise
        silence()
