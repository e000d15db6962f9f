"""The tables of any study: a leaderboard, or methods by conditions."""

from __future__ import annotations

from dataclasses import replace

from mtlbench.report import formatting
from mtlbench.report.columns import (
    Part,
    TableColumn,
    condition_grid,
    cost_grid,
    cost_notes,
    grid,
    leaderboard_grid,
    metrics_grid,
)
from mtlbench.report.formatting import Cell
from mtlbench.report.model import ConditionBoard, Leaderboard
from mtlbench.report.published import published_grid
from mtlbench.report.statistics import estimate
from mtlbench.report.views.grouping import Section, group_sections
from mtlbench.report.views.transfer import transfer_sections
from mtlbench.report.views.tuning import tuning_sections

AnyBoard = Leaderboard | ConditionBoard
Grid = tuple[Part, ...]

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


def main(board: AnyBoard, view: str = "") -> Grid:
    """Returns the table of the study with the columns of a view, see `mtlbench.report.columns.VIEWS`."""
    return leaderboard_grid(board, view) if isinstance(board, Leaderboard) else condition_grid(board, view)


def differences(board: AnyBoard) -> tuple[str, Grid] | None:
    """Returns heading and table of the comparisons; None if there is nothing to compare."""
    if not board.comparisons:
        return None
    if isinstance(board, Leaderboard):
        return "Differences in Δm, paired by seed", grid(COMPARED, board.comparisons)
    return f"Differences to {board.reference}, paired by seed: {board.quantity}", difference_grid(board)


def published(board: AnyBoard) -> tuple[str, Grid] | None:
    """Returns heading and table of rows that others published under our protocols; None if there are none."""
    return published_grid(board) if isinstance(board, Leaderboard) else None


def sections(board: AnyBoard, view: str = "") -> tuple[Section, ...]:
    """Returns the tables of costs, transfer, tuning, and groups of tasks, each where there is something to show."""
    costs = cost_grid(board, view)
    known = bool(costs[0].cells) and len(costs) > 1
    own = (Section("Costs", costs, tuple(cost_notes(board.rows))),) if known else ()
    if not isinstance(board, Leaderboard):
        return (*own, *transfer_sections(board.transfer))
    return (*own, *tuning_sections(board.tunings), *group_sections(board.groupings))


def every_metric(board: AnyBoard) -> Grid:
    """Returns every metric of every task."""
    return metrics_grid(board) if isinstance(board, Leaderboard) else score_grid(board)


def difference_grid(board: ConditionBoard) -> Grid:
    """Returns every row against the reference, condition by condition."""
    method, _, difference, interval, *others = COMPARED
    shown = (
        method,
        replace(difference, head="difference", show=lambda v: formatting.number(v, board.digits, sign=True)),
        replace(interval, show=lambda v: formatting.interval(v, board.digits)),
        *others,
    )
    head, *rest = grid(shown, [comparison for _, comparison in board.comparisons])
    conditions = Part("condition", tuple(Cell(name) for name, _ in board.comparisons), "name", text=True)
    return (head, conditions, *rest)


def score_grid(board: ConditionBoard) -> Grid:
    """Returns the mean of every metric, one line per method and condition."""
    lines = [(row.label, condition, found) for row in board.rows for condition, found in row.scores.items()]
    shown = [c for c in board.columns if any(found[c.key] for _, _, found in lines)]
    names = (
        TableColumn(head="method", value=lambda line: line[0], group="name", text=True),
        TableColumn(head="condition", value=lambda line: line[1], group="name", text=True),
    )
    scores = [
        Part(formatting.metric(c), tuple(map(Cell, formatting.numbers([_mean(f[c.key]) for *_, f in lines]))), "score")
        for c in shown
    ]
    return (*grid(names, lines), *scores)


def _mean(values: dict[int, float]) -> float | None:
    return estimate(values.values()).mean if values else None
