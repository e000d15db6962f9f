"""What the search of every row found: its trials, the chosen one, and its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mtlbench.report.tables.cost import search_seconds, searched
from mtlbench.report.tables.records import by_label
from mtlbench.report.tuning import Tuning, TuningTrial

Record = Mapping[str, Any]


def tunings(study: Record, done: Mapping[str, Record]) -> tuple[Tuning, ...]:
    """Returns the searches that have ended, in the order of the suite.

    Args:
        study: Content of ``study.json``.
        done: Result of every finished run.
    """
    found = []
    for label, entries in by_label(study["rows"]).items():
        entry = next((e for e in entries if searched(e)), None)  # All seeds of a row share one search.
        if entry:
            trials = tuple(_trial(trial) for trial in searched(entry))
            chosen = entry["record"]["search"].get("chosen")
            found.append(Tuning(label, trials, chosen, search_seconds(entry, done)))
    return tuple(found)


def _trial(record: Record) -> TuningTrial:
    score = record.get("score")
    known = isinstance(score, int | float) and math.isfinite(score)
    values = record.get("values")
    return TuningTrial(
        number=record.get("number", 0),
        values=dict(values) if isinstance(values, dict) else {},
        score=float(score) if known and score is not None else None,
        failed=str(record.get("failed") or ""),
        steps=steps if isinstance(steps := record.get("steps"), int) else 0,
    )
