"""Results as pandas frames, in full precision. The only place that knows pandas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from mtlbench.metrics.relative import PROTOCOL
from mtlbench.report.columns import COSTS, PAIRED, SEARCH
from mtlbench.report.model import Column, ConditionBoard, ConditionRow, Leaderboard, Row
from mtlbench.report.reader import ReportInput
from mtlbench.report.statistics import Estimate, estimate

Board = Leaderboard | ConditionBoard
Record = dict[str, Any]

NAMES = ("run", "label", "method", "seed", "condition", "task", "metric", "protocol", "unit", "better", "value")
"""Columns of the tidy frame before the costs of the run. ``condition`` is there where a study varies conditions."""


def tidy(study: ReportInput, board: Board) -> pd.DataFrame:
    """Returns one line per score of a run, and one per seed and row for Δm.

    Lines of Δm (``metric == "delta_m"``) compare a whole row with the baseline, so they have neither task nor run.
    """
    if isinstance(board, Leaderboard):
        lines = [line for row in board.rows for line in _ranked_lines(study, board, row)]
    else:
        lines = [line for row in board.rows for line in _condition_lines(study, board, row)]
    names = [name for name in NAMES if name != "condition" or isinstance(board, ConditionBoard)]
    costs = [column.key for column in COSTS if any(line.get(column.key) is not None for line in lines)]
    return pd.DataFrame(lines, columns=[*names, *costs])


def leaderboard(board: Board) -> pd.DataFrame:
    """Returns one line per row of the table, by label: means and standard deviations over seeds, and costs."""
    rows = [_ranked(board, row) if isinstance(row, Row) else _by_condition(row) for row in board.rows]
    labels = pd.Index([row.label for row in board.rows], name="label")
    frame = pd.DataFrame(rows, index=labels)
    known = [name for name in frame if name not in _OPTIONAL or frame[name].notna().any()]
    # A column without any value would hold objects, with which nothing can be computed.
    numbers = {name: "float64" for name in known if name != "method" and frame[name].dtype == object}
    frame = frame[known].astype(numbers)
    return frame.astype({"rank": "Int64"}) if "rank" in frame else frame


def problems(board: Board) -> pd.DataFrame:
    """Returns one line per run without a result, with the reason."""
    names = ("label", "seed", "run", "state", "reason")
    return pd.DataFrame([{name: getattr(p, name) for name in names} for p in board.problems], columns=list(names))


_OPTIONAL = {*(column.key for column in (*COSTS, SEARCH)), "seconds_per_step_ratio", "gap_closed"}


def _ranked_lines(study: ReportInput, board: Leaderboard, row: Row) -> Iterator[Record]:
    entries = [entry for entry in study.plan["rows"] if entry["label"] == row.label]
    for column in board.columns:
        yield from _scores(study, row, entries, column, row.scores[column.key])
    about = {"label": row.label, "method": row.method, "metric": "delta_m", "protocol": PROTOCOL, "unit": "%"}
    for seed, value in sorted(row.deltas.items()):
        yield {**about, "better": "higher", "seed": seed, "value": value}


def _condition_lines(study: ReportInput, board: ConditionBoard, row: ConditionRow) -> Iterator[Record]:
    for condition, scores in row.scores.items():
        entries = [e for e in study.plan["rows"] if (e["label"], e["condition"]) == (row.label, condition)]
        for column in board.columns:
            for line in _scores(study, row, entries, column, scores[column.key]):
                yield {**line, "condition": condition}


def _scores(
    study: ReportInput, row: Row | ConditionRow, entries: list[Record], column: Column, values: Mapping[int, float]
) -> Iterator[Record]:
    runs = {entry["seed"]: entry["serving"].get(column.task) for entry in entries}
    for seed, value in sorted(values.items()):
        yield {
            "run": runs[seed],
            "label": row.label,
            "method": row.method,
            "seed": seed,
            "task": column.task,
            "metric": column.protocol.rpartition("@")[0],
            "protocol": column.protocol,
            "unit": column.unit,
            "better": "higher" if column.higher_is_better else "lower",
            "value": value,
            **_costs(study.results[runs[seed]], column.task),
        }


def _costs(result: Mapping[str, Any], task: str) -> Record:
    """Returns what the run cost; a cost per task is that of the task."""
    known = {"steps": result.get("steps"), **(result.get("cost") or {})}
    return {c.key: (known.get(c.key) or {}).get(task) if c.per_task else known.get(c.key) for c in COSTS}


def _ranked(board: Board, row: Row) -> Record:
    margin = row.margin.estimate if row.margin else None
    line: Record = {"rank": row.rank, "method": row.method, "seeds": len(row.seeds), **_named("delta_m", row.delta)}
    line |= {"difference_low": margin.low if margin else None, "difference_high": margin.high if margin else None}
    line["gap_closed"] = row.gap.mean if row.gap else None
    for column in (c for c in board.columns if c.primary):
        line |= _named(f"score_{column.task}", row.cells.get(column.key))
    return line | _row_costs(row)


def _by_condition(row: ConditionRow) -> Record:
    line: Record = {"method": row.method}
    for condition, values in row.values.items():
        found = estimate(values.values()) if values else None
        line |= {f"{condition}": found.mean if found else None}
        line |= {f"{condition}_{end}": getattr(found, end, None) for end in ("low", "high")}
    return line | _row_costs(row)


def _row_costs(row: Row | ConditionRow) -> Record:
    costs = {column.key: column.value(row) for column in (*COSTS, SEARCH)}
    pairs = PAIRED.value(row)
    return {**costs, "seconds_per_step_ratio": pairs.ratio if pairs else None}


def _named(name: str, found: Estimate | None) -> Record:
    return {name: found.mean if found else None, f"{name}_std": found.std if found else None}
