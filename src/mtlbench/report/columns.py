"""The columns of all tables of the report. Add one entry here to add a column to every table, a cost also to the CSV.

A `TableColumn` defines what a column shows for a row. `grid` formats columns and rows as `Part`s, which
`mtlbench.report.views` lays out. Costs (`COSTS`) also define how the values of several runs are combined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mtlbench.report import formatting
from mtlbench.report.formatting import Cell
from mtlbench.report.model import Board, Column, ConditionBoard, ConditionRow, Leaderboard, Row

VIEWS = frozenset({"terminal", "markdown", "csv", "latex", "html"})
"""Where a column may appear."""

TABLES = frozenset({"leaderboard", "conditions", "costs"})
"""Tables that show costs. That of costs alone has all of them, the others those that fit beside scores."""

NOT_LATEX = VIEWS - {"latex"}
"""For columns that a table in a paper has no room for."""


@dataclass(frozen=True)
class Part:
    """A column formatted as text.

    Attributes:
        head: Heading.
        cells: One per row.
        group: ``"name"``, ``"score"``, ``"delta"`` or ``"cost"``.
        tip: Full meaning of the heading.
        text: Whether the cells hold words and are left-aligned.
        better: ``"higher"``, ``"lower"`` or ``""``.
    """

    head: str
    cells: tuple[Cell, ...]
    group: str
    tip: str = ""
    text: bool = False
    better: str = ""


@dataclass(frozen=True, kw_only=True)
class TableColumn:
    """A column: its heading, its value for a row, and how to show it.

    Attributes:
        head: Heading.
        value: Its value for a row; ``None`` is blank.
        show: The value as text or `Cell`.
        group: ``"name"``, ``"score"``, ``"delta"`` or ``"cost"``; a narrow terminal splits a table along groups.
        tip: Full meaning of the heading.
        better: ``"higher"``, ``"lower"`` or ``""``.
        note: How to read the column, printed beneath the table; ``""`` if the heading suffices.
        views: Where it appears.
        text: Whether it holds words.
        mark: Whether the best mean is bold; only for columns of `Estimate`.
        flag: Whether the cell of a row carries the mark of the floor.
        optional: Whether it is left out where no row has a value.
    """

    head: str
    value: Callable[[Any], Any]
    show: Callable[[Any], str | Cell] = str
    group: str = "score"
    tip: str = ""
    better: str = ""
    note: str = ""
    views: frozenset[str] = VIEWS
    text: bool = False
    mark: bool = False
    flag: Callable[[Any], bool] = lambda row: False
    optional: bool = False

    def part(self, rows: Sequence[Any]) -> Part:
        """Returns the column as text."""
        values = [self.value(row) for row in rows]
        ranked = [
            (row, v) for row, v in zip(rows, values, strict=True) if self.mark and v is not None and not row.floor
        ]
        means = [value.mean for _, value in ranked]
        best = (max if self.better == "higher" else min)(means) if len(means) > 1 else None
        first = {id(row) for row, value in ranked if value.mean == best}
        cells = [
            formatting.cell(value, self.show, id(row) in first, self.flag(row))
            for row, value in zip(rows, values, strict=True)
        ]
        return Part(self.head, tuple(cells), self.group, self.tip, self.text, self.better)


@dataclass(frozen=True, kw_only=True)
class CostColumn(TableColumn):
    """A cost: one number per row, from the section ``cost`` of its runs' ``result.json``.

    Attributes:
        key: Name in ``result.json`` and in the CSV.
        unit: Unit in the CSV.
        merge: Combines the values of the runs of one seed: `sum` or `max`.
        tables: Which tables have it, of `TABLES`.
        preparing: Whether runs that only prepare others count, besides those that serve tasks.
        per_task: Whether a run has one value per task; a row has their mean over its tasks, each of the serving run.
    """

    key: str
    unit: str = ""
    merge: Callable[[list[float]], float] = sum
    tables: frozenset[str] = TABLES
    preparing: bool = False
    per_task: bool = False


def cost(key: str, head: str, show: Callable[[Any], str], **others: Any) -> CostColumn:
    """Creates the column of a cost; lower is better."""
    return CostColumn(
        key=key,
        head=head,
        show=show,
        value=lambda row: row.cost.values.get(key) if row.cost else None,
        **{"group": "cost", "better": "lower", **others},
    )


_ALONE = frozenset({"costs"})

COSTS = (
    cost(
        "seconds_per_step",
        "s/step",
        formatting.seconds,
        unit="s",
        tip="seconds per optimiser step, without diagnostics",
        note="mean seconds of an optimiser step, without evaluations, checkpoints and steps that measure gradient "
        "conflict. Measured in the study's own runs, which may have shared the machine with other runs",
    ),
    cost(
        "parameters",
        "params",
        formatting.count,
        tip="trainable parameters of all networks",
        note="trainable parameters of the networks that serve the tasks",
    ),
    cost(
        "parameters_active",
        "active",
        formatting.count,
        tables=_ALONE,
        per_task=True,
        tip="parameters that one task reads",
        note="parameters that the prediction of one task alone reads, of E experts the k of one token; mean over tasks",
    ),
    cost(
        "flops_alone",
        "FLOPs/task",
        formatting.count,
        tables=_ALONE,
        per_task=True,
        tip="forward FLOPs per image for one task alone",
        note="FLOPs of predicting one task alone for one image; mean over tasks. Two per multiply-add of products, "
        "convolutions and attention, nothing for element-wise work",
    ),
    cost(
        "flops",
        "FLOPs/image",
        formatting.count,
        tables=_ALONE,
        tip="forward FLOPs per image for all tasks",
        note="FLOPs of predicting all tasks for one image",
    ),
    cost(
        "training_flops",
        "train FLOPs",
        formatting.count,
        preparing=True,
        tip="FLOPs of all training of one seed",
        note="FLOPs of all forward and backward passes of all runs of one seed, counted on one real step of each kind "
        "and multiplied by its number of steps: passes of every single task, trial steps and passes before the first "
        "step included, diagnostics and evaluations not",
    ),
    cost(
        "steps",
        "steps",
        formatting.whole,
        merge=max,
        tables=_ALONE,
        tip="optimiser steps",
        note="optimiser steps of a run",
    ),
    cost(
        "peak_memory_gib",
        "GiB",
        formatting.memory,
        unit="GiB",
        merge=max,
        tables=_ALONE,
        tip="peak memory of the largest run",
        note="peak memory of the largest run: on an accelerator what PyTorch allocated, on a CPU the resident memory "
        "of the process",
    ),
    cost(
        "train_seconds",
        "train",
        formatting.duration,
        unit="s",
        preparing=True,
        views=NOT_LATEX,
        tip="training time of all runs of one seed",
        note="training time of all runs of one seed, evaluations, checkpoints and diagnostics included",
    ),
)
"""Cost columns of all tables and of the CSV."""

PAIRED = TableColumn(
    head="time ×",
    value=lambda row: row.cost.paired if row.cost else None,
    show=formatting.ratio,
    group="cost",
    better="lower",
    tip="seconds per step relative to the reference, in interleaved pairs",
    note="seconds per step, without diagnostics, relative to those of {reference}: geometric mean over pairs of blocks "
    "of steps that took turns in one process, with its 95 % interval (`mtlbench cost`)",
)
"""The other kind of time; a table beside scores shows it, where it was measured, instead of the runs' own times."""

SEARCH = cost(
    "search_seconds",
    "search",
    formatting.duration,
    unit="s",
    views=NOT_LATEX,
    tip="training time of the trials of the row",
    note="training time of the trials of the row, once for all of its seeds; trials that failed are not counted",
)
"""Cost of equal tuning; only tuned tables have this column."""

METHOD = TableColumn(head="method", value=lambda row: row.label, group="name", text=True)

INTERVAL = "95 % interval"

RANKING = (
    TableColumn(head="#", value=lambda row: row.rank, group="name", tip="rank"),
    METHOD,
    TableColumn(head="n", value=formatting.seeds, group="name", tip="seeds without a missing cell"),
    TableColumn(
        head="Δm % ↑",
        value=lambda row: row.delta,
        show=formatting.delta,
        group="delta",
        better="higher",
        mark=True,
        flag=lambda row: row.unfounded,
        tip="mean relative gain over single-task training",
    ),
    TableColumn(
        head=INTERVAL,
        value=lambda row: row.margin.estimate if row.margin else None,
        show=formatting.interval,
        group="delta",
        tip="95 % t interval of the difference in Δm from the row that the notes name, paired by seed",
    ),
    TableColumn(
        head="gap % ↑",
        value=lambda row: row.gap,
        show=formatting.share,
        group="delta",
        better="higher",
        mark=True,
        optional=True,
        tip="share of the gap between the floor and the best value that is closed, mean over tasks",
        note="(score − floor) / (best value − floor), mean over the tasks that enter Δm. 0 is the floor, 100 perfect.",
    ),
)
"""Columns of the leaderboard before the scores."""


def grid(columns: Iterable[TableColumn], rows: Sequence[Any], view: str = "") -> tuple[Part, ...]:
    """Formats the columns that a view shows; ``""`` selects every column."""
    shown = (column for column in columns if not view or view in column.views)
    return tuple(c.part(rows) for c in shown if not c.optional or any(c.value(row) is not None for row in rows))


def leaderboard_grid(board: Leaderboard, view: str = "") -> tuple[Part, ...]:
    """Builds the main table: rank, label, Δm, one column per task, costs."""
    scores = [_scores(formatting.heading(board, c), board, c) for c in board.primary]
    ranking = grid([_read_against(board, column) for column in RANKING], board.rows, view)
    return (*ranking, *scores, *grid(_costs("leaderboard", board.rows), board.rows, view))


def condition_grid(board: ConditionBoard, view: str = "") -> tuple[Part, ...]:
    """Builds the table of methods by conditions, with intervals and costs."""
    scores = [
        TableColumn(
            head=name,
            value=partial(formatting.condition_cell, board, name),
            flag=partial(_at_floor, name),
            tip=board.quantity,
        )
        for name in board.conditions
    ]
    return grid((METHOD, *scores, *_costs("conditions", board.rows)), board.rows, view)


def cost_grid(board: Board, view: str = "") -> tuple[Part, ...]:
    """Builds the table of costs alone; it has no rows if no cost is known."""
    known = [row for row in _rows(board) if row.cost]
    return grid((METHOD, *_costs("costs", known)), known, view)


def metrics_grid(board: Leaderboard) -> tuple[Part, ...]:
    """Builds the table of every metric of every task, including those outside the ranking."""
    return (METHOD.part(board.rows), *(_scores(formatting.metric(c), board, c) for c in board.columns))


def numbers_of(row: Any) -> Iterable[dict[str, object]]:
    """Yields the CSV records of a row's costs, in full precision."""
    for column in (*COSTS, SEARCH):
        value = column.value(row) if "csv" in column.views else None
        if value is not None:
            yield {"quantity": column.key, "unit": column.unit, "better": column.better, "mean": value}
    if pairs := PAIRED.value(row):
        numbers = {"mean": pairs.ratio, "low": pairs.low, "high": pairs.high, "n": pairs.pairs}
        yield {"quantity": "seconds_per_step_ratio", "better": "lower", **numbers}


def column_notes(rows: Sequence[Row]) -> list[str]:
    """Returns the notes of the columns before the scores that have a value."""
    return [f"{c.head}: {c.note}" for c in RANKING if c.note and any(c.value(row) is not None for row in rows)]


def cost_notes(rows: Sequence[Row | ConditionRow]) -> list[str]:
    """Returns the definitions of the costs that the table of costs shows."""
    reference = next((row.cost.paired.reference for row in rows if row.cost and row.cost.paired), "")
    lines = [f"{c.head}: {c.note.format(reference=reference)}." for c in _costs("costs", rows) if c.note]
    several = any(row.cost and row.cost.runs > 1 for row in rows)
    return [*lines, f"A row with several runs: {merged_costs()}."] if several else lines


def kind_of_time(rows: Sequence[Row | ConditionRow]) -> str:
    """Says which of the two kinds of time a table beside scores shows; ``""`` if none."""
    shown = [column.head for column in _costs("leaderboard", rows)]
    if PAIRED.head in shown:
        return f"{PAIRED.head} was measured in interleaved pairs by `mtlbench cost`; the table of costs defines it."
    if "s/step" in shown:
        return (
            "s/step was measured in the study's own runs, which may have shared the machine with other runs. "
            "`mtlbench cost` measures methods in interleaved pairs. The table of costs defines all costs."
        )
    return ""


def merged_costs() -> str:
    """Says how the costs of several runs are combined, for a footnote."""
    merged: dict[str, list[str]] = {}
    for column in COSTS:
        how = "mean over tasks" if column.per_task else {"sum": "sum", "max": "maximum"}[column.merge.__name__]
        merged.setdefault(how, []).append(column.head)
    return "; ".join(f"{merge} of {', '.join(heads)}" for merge, heads in merged.items())


def problem_summary(board: Board) -> str:
    """Counts failed and unfinished runs; ``""`` if there are none."""
    return ", ".join(f"{count} {what}" for what, count in board.counts.items() if count)


def _read_against(board: Leaderboard, column: TableColumn) -> TableColumn:
    """Returns the column with a heading that names the row which the intervals refer to, if it is not the baseline."""
    if column.head != INTERVAL or board.against == board.baseline:
        return column
    return replace(column, head=f"{INTERVAL}, minus {board.against}")


def _scores(head: str, board: Leaderboard, column: Column) -> Part:
    better = "higher" if column.higher_is_better else "lower"
    return Part(head, tuple(formatting.score_cells(board.rows, column)), "score", column.protocol, better=better)


def _at_floor(condition: str, row: ConditionRow) -> bool:
    return condition in row.at_floor


def _costs(table: str, rows: Sequence[Row | ConditionRow]) -> list[TableColumn]:
    """Returns the costs that a table shows: of the two kinds of time, one beside scores; nothing that no run has."""
    known: list[TableColumn] = [
        c for c in (*COSTS, SEARCH) if table in c.tables and any(c.value(row) is not None for row in rows)
    ]
    if not any(PAIRED.value(row) for row in rows):
        return known
    if table == "costs":
        return [PAIRED, *known]
    short = replace(PAIRED, show=lambda found: formatting.number(found.ratio, 2))  # The interval is in that of costs.
    return [short, *(c for c in known if c.head not in ("s/step", "train"))]


def _rows(board: Board) -> Sequence[Row | ConditionRow]:
    return board.rows if isinstance(board, (Leaderboard, ConditionBoard)) else ()
