"""The run's own record of its steps, ``metrics.jsonl``, from which everything else is copied."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsFile:
    """Appends rows, each with its ``step``, to ``metrics.jsonl``.

    Args:
        path: The file.
        resume_step: Rows after this step are dropped: they belong to work that a kill undid.
        again: Prefix of keys that the resumed run writes again at this very step: the final scores.

    Attributes:
        kept: The rows that were there already.
    """

    def __init__(self, path: Path, resume_step: int = 0, again: str | None = None):
        self.kept = [row for row in read_rows(path) if row["step"] <= resume_step] if resume_step else []
        if again is not None:
            self.kept = [r for r in self.kept if r["step"] < resume_step or not any(key.startswith(again) for key in r)]
        # Written beside and renamed: a kill now must not lose the rows of work that is kept.
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in self.kept))
        os.replace(temporary, path)
        self._file = path.open("a")

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds one row."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a ``metrics.jsonl``; a torn last line is passed over."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
