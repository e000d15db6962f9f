"""The tables of any study: a leaderboard, or methods by conditions."""

from __future__ import annotations

from mtlbench.report import formatting
from mtlbench.report.columns import Part, comparison_grid, leaderboard_grid, metrics_grid
from mtlbench.report.formatting import Cell
from mtlbench.report.model import ConditionBoard, ConditionRow, Leaderboard
from mtlbench.report.published import published_grid
from mtlbench.report.statistics import estimate
from mtlbench.report.views.grouping import Section, group_sections

AnyBoard = Leaderboard | ConditionBoard
Grid = tuple[Part, ...]

TEXTUAL = ("method", "against", "condition", "backbone", "source", "networks")
"""Headings of columns that hold words."""


def main(board: AnyBoard) -> Grid:
    """Returns the table of the study."""
    return leaderboard_grid(board) if isinstance(board, Leaderboard) else condition_grid(board)


def differences(board: AnyBoard) -> tuple[str, Grid] | None:
    """Returns heading and table of the comparisons; None where there is nothing to compare."""
    if not board.comparisons:
        return None
    if isinstance(board, Leaderboard):
        return "Differences in Δm, paired by seed", comparison_grid(board)
    return f"Differences to {board.reference}, paired by seed: {board.quantity}", difference_grid(board)


def published(board: AnyBoard) -> tuple[str, Grid] | None:
    """Returns heading and table of rows that others published under our protocols; None where there are none."""
    return published_grid(board) if isinstance(board, Leaderboard) else None


def groupings(board: AnyBoard) -> tuple[Section, ...]:
    """Returns what there is to say about groups of tasks; nothing where no plan looked for them."""
    return group_sections(board.groupings) if isinstance(board, Leaderboard) else ()


def every_metric(board: AnyBoard) -> Grid:
    """Returns every metric of every task."""
    return metrics_grid(board) if isinstance(board, Leaderboard) else score_grid(board)


def condition_grid(board: ConditionBoard) -> Grid:
    """Returns methods by conditions, with intervals, and costs."""
    rows = board.rows
    return (
        Part.of("method", [row.label for row in rows], "name"),
        *(Part(c, tuple(_value(board, row, c) for row in rows), "score", board.quantity) for c in board.conditions),
        Part.of("s/step", [formatting.seconds(row.cost) for row in rows], "cost", "seconds per optimiser step"),
        Part.of("params", [formatting.parameters(row.cost) for row in rows], "cost", "parameters"),
        Part.of("train", [formatting.hours(row.cost) for row in rows], "cost", "training time per condition and seed"),
    )


def difference_grid(board: ConditionBoard) -> Grid:
    """Returns every row against the reference, condition by condition."""
    every = [c for _, c in board.comparisons]
    found = [c.difference.estimate for c in every]
    return (
        Part.of("method", [f"{c.label}{' *' if c.named else ''}" for c in every], "name", "*: named beforehand"),
        Part.of("condition", [condition for condition, _ in board.comparisons], "name"),
        Part.of("difference", [formatting.number(e.mean, board.digits, sign=True) for e in found], "score"),
        Part.of("95 % interval", [formatting.interval(e, board.digits) for e in found], "score"),
        Part.of("n", [str(e.n) for e in found], "score", "seeds in common"),
        Part.of("p (Holm)", [formatting.probability(c.p_holm) for c in every], "score"),
    )


def score_grid(board: ConditionBoard) -> Grid:
    """Returns the mean of every metric, a line per method and condition."""
    lines = [(row.label, condition, found) for row in board.rows for condition, found in row.scores.items()]
    shown = [c for c in board.columns if any(found[c.key] for _, _, found in lines)]
    return (
        Part.of("method", [label for label, _, _ in lines], "name"),
        Part.of("condition", [condition for _, condition, _ in lines], "name"),
        *(
            Part.of(formatting.metric(c), formatting.numbers([_mean(found[c.key]) for _, _, found in lines]), "score")
            for c in shown
        ),
    )


def _value(board: ConditionBoard, row: ConditionRow, condition: str) -> Cell:
    """Returns mean and interval, and how many seeds where some lack."""
    values = row.values.get(condition) or {}
    if not values:
        return Cell(formatting.BLANK)
    found = estimate(values.values())
    interval = "" if found.low is None else formatting.interval(found, board.digits, sign=board.signed)
    partial = f"(n={found.n})" if found.n != len(row.planned) else ""
    return Cell(formatting.number(found.mean, board.digits, board.signed), f"{interval} {partial}".strip())


def _mean(values: dict[int, float]) -> float | None:
    return estimate(values.values()).mean if values else None
