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
from mtlbench.report.groups import FoundGroups
from mtlbench.report.model import Board, Comparison, ConditionBoard, ConditionRow, Leaderboard, Row

VIEWS = frozenset({"terminal", "markdown", "csv", "latex", "html"})
"""Where a column may appear."""

TABLES = frozenset({"leaderboard", "conditions"})
"""Tables that show costs."""

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
    """

    head: str
    cells: tuple[Cell, ...]
    group: str
    tip: str = ""
    text: bool = False


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
        return Part(self.head, tuple(cells), self.group, self.tip, self.text)


@dataclass(frozen=True, kw_only=True)
class CostColumn(TableColumn):
    """A cost: one number per row, from the section ``cost`` of its runs' ``result.json``.

    Attributes:
        key: Name in ``result.json`` and in the CSV.
        unit: Unit in the CSV.
        merge: Combines the values of the runs of one seed: `sum` or `max`.
        tables: Which tables have it, ``"leaderboard"`` and ``"conditions"``.
        preparing: Whether runs that only prepare others count, besides those that serve tasks.
    """

    key: str
    unit: str = ""
    merge: Callable[[list[float]], float] = sum
    tables: frozenset[str] = TABLES
    preparing: bool = False


def cost(key: str, head: str, show: Callable[[Any], str], **others: Any) -> CostColumn:
    """Creates the column of a cost; lower is better."""
    return CostColumn(
        key=key,
        head=head,
        show=show,
        value=lambda row: row.cost.values.get(key) if row.cost else None,
        **{"group": "cost", "better": "lower", **others},
    )


COSTS = (
    cost("seconds_per_step", "s/step", formatting.seconds, unit="s", tip="seconds per optimiser step"),
    cost(
        "peak_memory_gib",
        "GiB",
        formatting.memory,
        unit="GiB",
        merge=max,
        tables=frozenset({"leaderboard"}),
        tip="peak memory of the largest run",
    ),
    cost("parameters", "params", formatting.parameters, tip="number of parameters"),
    cost(
        "train_seconds",
        "train",
        formatting.duration,
        unit="s",
        preparing=True,
        views=NOT_LATEX,
        tip="training time of all runs of one seed",
    ),
)
"""Cost columns of the leaderboard, of the table of conditions and of the CSV."""

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
        tip="95 % t interval of the difference in Δm to the row that the notes name, paired by seed",
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

COMPARED = (
    TableColumn(
        head="method",
        value=lambda c: f"{c.label}{' *' if c.named else ''}",
        group="name",
        text=True,
        tip="*: pre-registered comparison",
    ),
    TableColumn(head="against", value=lambda c: c.reference, group="name", text=True),
    TableColumn(
        head="difference in Δm",
        value=lambda c: c.difference.estimate.mean,
        show=lambda v: formatting.number(v, 2, sign=True),
        flag=lambda c: c.unfounded,
    ),
    TableColumn(head="95 % interval", value=lambda c: c.difference.estimate, show=formatting.interval),
    TableColumn(head="n", value=lambda c: c.difference.estimate.n, tip="common seeds"),
    TableColumn(
        head="p (Holm)",
        value=lambda c: c.p_holm,
        show=formatting.probability,
        tip="paired t test, Holm correction per reference; of a pre-registered comparison: corrected for looks",
    ),
)
"""Columns of the pairwise comparisons."""

FOUND = (
    TableColumn(head="method", value=lambda line: line[0], group="name", text=True),
    TableColumn(head="seed", value=lambda line: line[1].seed, group="name"),
    TableColumn(
        head="networks",
        value=lambda line: networks(line[1]),
        text=True,
        tip="a task in parentheses is served by another network",
    ),
    TableColumn(
        head="search",
        value=lambda line: line[1].search_seconds,
        show=formatting.duration,
        group="cost",
        tip="training time of runs that only search for groups",
    ),
    TableColumn(
        head="groups",
        value=lambda line: line[1].group_seconds,
        show=formatting.duration,
        group="cost",
        tip="training time of all other runs of the row",
    ),
    TableColumn(head="total", value=lambda line: line[1].total_seconds, show=formatting.duration, group="cost"),
    TableColumn(
        head="of all %",
        value=lambda line: line[1].share,
        show=lambda v: formatting.number(v, 1),
        group="cost",
        tip="total as a share of training every subset of tasks",
    ),
)
"""Columns of the groups of tasks; a row is a label and one `FoundGroups`."""

QUALITY = (
    METHOD,
    TableColumn(head="ρ", value=lambda g: g.correlation, show=formatting.delta, tip="Spearman rank correlation"),
    TableColumn(head="95 % interval", value=lambda g: g.correlation, show=formatting.interval),
    TableColumn(head="seeds", value=lambda g: g.correlation.n if g.correlation else None),
    TableColumn(head="groups compared", value=lambda g: _counts(g.found), tip="per seed"),
    TableColumn(
        head="of all %",
        value=lambda g: g.share.mean if g.share else None,
        show=lambda v: formatting.number(v, 1),
        group="cost",
        tip="mean over seeds",
    ),
)
"""Columns of predicted against measured quality; a row is a `Grouping`."""


def grid(columns: Iterable[TableColumn], rows: Sequence[Any], view: str = "") -> tuple[Part, ...]:
    """Formats the columns that a view shows; ``""`` selects every column."""
    shown = (column for column in columns if not view or view in column.views)
    return tuple(c.part(rows) for c in shown if not c.optional or any(c.value(row) is not None for row in rows))


def leaderboard_grid(board: Leaderboard, view: str = "") -> tuple[Part, ...]:
    """Builds the main table: rank, label, Δm, one column per task, costs."""
    scores = [
        Part(formatting.heading(board, c), tuple(formatting.score_cells(board.rows, c)), "score", c.protocol)
        for c in board.primary
    ]
    ranking = grid([_read_against(board, column) for column in RANKING], board.rows, view)
    return (*ranking, *scores, *grid(_costs("leaderboard"), board.rows, view))


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
    return grid((METHOD, *scores, *_costs("conditions")), board.rows, view)


def comparison_grid(comparisons: Sequence[Comparison]) -> tuple[Part, ...]:
    """Builds the table of pairwise comparisons; it has no rows if there is nothing to compare."""
    return grid(COMPARED, comparisons)


def metrics_grid(board: Leaderboard) -> tuple[Part, ...]:
    """Builds the table of every metric of every task, including those outside the ranking."""
    scores = [Part(formatting.metric(c), tuple(formatting.score_cells(board.rows, c)), "score") for c in board.columns]
    return (METHOD.part(board.rows), *scores)


def numbers_of(row: Any) -> Iterable[dict[str, object]]:
    """Yields the CSV records of a row's costs, in full precision."""
    for column in COSTS:
        value = column.value(row) if "csv" in column.views else None
        if value is not None:
            yield {"quantity": column.key, "unit": column.unit, "better": column.better, "mean": value}


def column_notes(rows: Sequence[Row]) -> list[str]:
    """Returns the notes of the columns that have a value."""
    return [
        f"{c.head}: {c.note}" for c in (*RANKING, *COSTS) if c.note and any(c.value(row) is not None for row in rows)
    ]


def merged_costs() -> str:
    """Says how the costs of several runs are combined, for a footnote."""
    merged: dict[str, list[str]] = {}
    for column in _costs("leaderboard"):
        merged.setdefault({"sum": "sum", "max": "maximum"}[column.merge.__name__], []).append(column.head)
    return "; ".join(f"{merge} of {', '.join(heads)}" for merge, heads in merged.items())


def networks(found: FoundGroups) -> str:
    """Lists the tasks of every network; parentheses mark tasks that another network serves."""
    lists = [
        [task if found.serves.get(task) == index else f"({task})" for task in group]
        for index, group in enumerate(found.groups)
    ]
    return "; ".join(" + ".join(tasks) for tasks in lists)


def problem_summary(board: Board) -> str:
    """Counts failed and unfinished runs; ``""`` if there are none."""
    return ", ".join(f"{count} {what}" for what, count in board.counts.items() if count)


def _read_against(board: Leaderboard, column: TableColumn) -> TableColumn:
    """Returns the column with a heading that names the row which the intervals refer to, if it is not the baseline."""
    if column.head != INTERVAL or board.against == board.baseline:
        return column
    return replace(column, head=f"{INTERVAL}, minus {board.against}")


def _at_floor(condition: str, row: ConditionRow) -> bool:
    return condition in row.at_floor


def _costs(table: str) -> list[CostColumn]:
    return [column for column in COSTS if table in column.tables]


def _counts(every: Sequence[FoundGroups]) -> str:
    counts = sorted({len(found.qualities) for found in every})
    return f"{counts[0]}–{counts[-1]}" if len(counts) > 1 else str(counts[0])
