"""The verdict on single tasks: who is best in each, and who cannot be distinguished from the best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mtlbench.report import formatting
from mtlbench.report.model import Column, Leaderboard, Row
from mtlbench.report.verdict.words import Pair, Statement, compared, listed


def by_task(board: Leaderboard) -> Iterator[Statement]:
    """Yields who is best in each task, and who is within noise of it."""
    for column in board.primary:
        rows = {row.label: row for row in board.rows if _complete(row, column)}
        if len(rows) < 2:
            continue
        sign = 1 if column.higher_is_better else -1
        values = {label: {s: sign * v for s, v in row.scores[column.key].items()} for label, row in rows.items()}
        best = max(rows.values(), key=lambda row: sign * row.cells[column.key].mean)
        if column.key not in best.at_floor:  # The statement on the floor says so.
            pairs = compared(values, best.label)
            yield Statement(f"Best for {column.task}", _task(board, column, best, pairs))


def _task(board: Leaderboard, column: Column, best: Row, pairs: Sequence[Pair]) -> str:
    shown = formatting.number(best.cells[column.key].mean, formatting.decimals([best.cells[column.key].mean]))
    text = f"{best.label} scores best ({shown}{f' {column.unit}' if column.unit else ''})"
    if any(pair.p is None for pair in pairs):
        return f"{text}, by the value of one seed alone."
    tied = [pair.label for pair in pairs if not pair.told]
    if not tied:
        text += ", ahead of every other method beyond noise."
    else:
        whom = listed(tied) if len(tied) < len(pairs) else "no other method"
        text += f"; {whom} {'can' if whom == 'no other method' else 'cannot'} be distinguished from it."
    gain = best.gains.get(column.task)
    base = next((row for row in board.rows if row.label == board.baseline), None)
    if gain and gain.significant and base and column.key not in base.at_floor:
        size, ends = formatting.number(gain.estimate.mean, 1, sign=True), formatting.interval(gain.estimate, 1)
        text += f" Gain over {board.baseline}: {size} %, 95 % interval {ends}."
    return text


def _complete(row: Row, column: Column) -> bool:
    return not row.floor and column.key in row.cells and row.cells[column.key].n == len(row.planned)
