"""Reads metrics, scores, run states and missing results from the records of a study."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mtlbench.errors import StoreError
from mtlbench.report.model import Column, Problem
from mtlbench.report.tables.cost import runs_of
from mtlbench.report.tables.stages import consequence

Record = Mapping[str, Any]


def columns_of(study: Record) -> tuple[Column, ...]:
    """Returns every metric of every task of a study."""
    return tuple(
        Column(
            task,
            p["id"],
            p["higher_is_better"],
            p.get("unit", ""),
            primary=i == 0,
            in_delta_m=i == 0 and about["in_delta_m"],
            best=about["best"] if i == 0 and "best" in about else float(p["higher_is_better"]),
        )
        for task, about in study["tasks"].items()
        for i, p in enumerate(about["protocols"])
    )


def known_states(
    study: Record, results: Mapping[str, Record], states: Mapping[str, str] | None, errors: Mapping[str, Record]
) -> dict[str, str]:
    """Returns the state of every run: as given, or inferred from its files."""
    runs = {run for entry in study["rows"] for run in (*runs_of(entry), *entry.get("trials", ()))}
    guess = {run: "done" if run in results else "failed" if run in errors else "todo" for run in runs}
    return guess | dict(states or {})


def by_label(entries: Iterable[Record]) -> dict[str, list[Record]]:
    """Groups the entries of a study by row."""
    grouped: dict[str, list[Record]] = {}
    for entry in entries:
        grouped.setdefault(entry["label"], []).append(entry)
    return grouped


def score_of(result: Record, column: Column, split: str) -> float | None:
    """Returns the score of one run in a column, ``None`` if it is missing or not finite."""
    if result.get("split", split) != split:
        raise StoreError(
            f"A table holds scores of one split. This one is of {split!r}, run {result['run_id']} of "
            f"{result['split']!r}. Run that method again, or report the two studies apart."
        )
    scores = result["scores"].get(column.task) or {}
    if column.primary and scores and column.protocol not in scores:
        raise StoreError(
            f"A column never mixes protocols. Column {column.task!r} holds {column.protocol}, run "
            f"{result['run_id']} reports {', '.join(sorted(scores))}. Run that method again under this protocol."
        )
    value = scores.get(column.protocol)
    return float(value) if value is not None and math.isfinite(value) else None


def problems_of(
    entries: Iterable[Record], states: Mapping[str, str], errors: Mapping[str, Record]
) -> Iterable[Problem]:
    """Yields every run without a result, with the reason."""
    for entry in entries:
        label, seed = entry["label"], entry["seed"]
        broken = [run for run in runs_of(entry) if states.get(run, "todo") != "done"]
        for run in broken:
            state = states.get(run, "todo")
            after = consequence(entry, run) if state == "failed" else ""
            yield Problem(label, seed, run, state, _reason(state, errors.get(run)) + after)
        if entry.get("error"):
            yield Problem(label, seed, "", "failed", f"its plan failed: {entry['error']}")
        elif not broken and not entry["serving"]:
            yield Problem(label, seed, "", "todo", "the plan has not yet decided which run serves which task")


def _reason(state: str, error: Record | None) -> str:
    if state == "failed" and error:
        return f"{error.get('type', 'Error')}: {error.get('message', '')}"
    return {
        "failed": "no error was recorded",
        "running": "still running",
        "stale": "stopped without a result; bench the suite again to resume it",
    }.get(state, "not started")
