"""The leaderboard as a grid of text, which every view lays out in its own way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mtlbench.report import formatting
from mtlbench.report.formatting import Cell
from mtlbench.report.model import Board, Leaderboard


@dataclass(frozen=True)
class Part:
    """One column of text.

    Attributes:
        head: Heading.
        cells: One per row.
        group: ``"name"``, ``"score"``, ``"delta"`` or ``"cost"``.
        tip: What the heading means in full.
    """

    head: str
    cells: tuple[Cell, ...]
    group: str
    tip: str = ""

    @classmethod
    def of(cls, head: str, texts: Iterable[str], group: str, tip: str = "") -> Part:
        """Returns a column of plain text."""
        return cls(head, tuple(Cell(text) for text in texts), group, tip)


def leaderboard_grid(board: Leaderboard) -> tuple[Part, ...]:
    """Returns the main table: rank, label, Δm, one column per task, costs."""
    rows = board.rows
    scores = [
        Part(formatting.heading(board, c), tuple(formatting.score_cells(rows, c)), "score", c.protocol)
        for c in board.primary
    ]
    costs = {
        "s/step": (formatting.seconds, "seconds per optimiser step"),
        "GiB": (formatting.memory, "peak memory"),
        "params": (formatting.parameters, "parameters"),
        "train": (formatting.hours, "training time of all runs, per seed"),
    }
    return (
        Part.of("#", [str(row.rank or formatting.BLANK) for row in rows], "name", "rank"),
        Part.of("method", [row.label for row in rows], "name"),
        Part.of("n", [formatting.seeds(row) for row in rows], "name", "seeds with every cell"),
        Part("Δm % ↑", tuple(formatting.delta_cells(rows)), "delta", "mean relative gain over single-task training"),
        Part.of("95 % interval", [formatting.interval(row.delta) for row in rows], "delta", "t interval of Δm"),
        *scores,
        *(Part.of(head, [show(row.cost) for row in rows], "cost", tip) for head, (show, tip) in costs.items()),
    )


def comparison_grid(board: Leaderboard) -> tuple[Part, ...]:
    """Returns the pairwise comparisons; no row where there is nothing to compare."""
    every = board.comparisons
    return (
        Part.of("method", [f"{c.label}{' *' if c.named else ''}" for c in every], "name", "*: named beforehand"),
        Part.of("against", [c.reference for c in every], "name"),
        Part.of(
            "difference in Δm", [formatting.number(c.difference.estimate.mean, 2, sign=True) for c in every], "score"
        ),
        Part.of("95 % interval", [formatting.interval(c.difference.estimate) for c in every], "score"),
        Part.of("n", [str(c.difference.estimate.n) for c in every], "score", "seeds in common"),
        Part.of("p (Holm)", [formatting.probability(c.p_holm) for c in every], "score", "corrected per reference row"),
    )


def metrics_grid(board: Leaderboard) -> tuple[Part, ...]:
    """Returns every metric of every task, those outside the ranking included."""
    return (
        Part.of("method", [row.label for row in board.rows], "name"),
        *(
            Part(
                formatting.metric(c),
                tuple(formatting.score_cells(board.rows, c)),
                "score",
            )
            for c in board.columns
        ),
    )


def problem_summary(board: Board) -> str:
    """Returns the count of failed and unfinished runs, ``""`` when there is none."""
    return ", ".join(f"{count} {what}" for what, count in board.counts.items() if count)
