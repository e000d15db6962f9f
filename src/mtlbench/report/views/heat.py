"""The heat map of gains: rows by tasks, as a table, so that it can be read aloud, printed and sorted."""

from __future__ import annotations

from dataclasses import dataclass

from mtlbench.report import formatting
from mtlbench.report.model import Column, Leaderboard, Row

STRONGEST = 0.55
"""Opacity of the largest gain or loss; text stays legible on it."""


@dataclass(frozen=True)
class HeatCell:
    """One gain.

    Attributes:
        text: The gain in per cent, with a triangle if its interval excludes 0.
        tip: The gain with its interval and number of seeds.
        look: ``"better"``, ``"worse"``, or ``""`` where the interval does not exclude 0.
        strength: Opacity of the colour.
        number: The gain in full precision.
    """

    text: str
    tip: str = ""
    look: str = ""
    strength: float = 0.0
    number: float | None = None


@dataclass(frozen=True)
class HeatMap:
    """Gains over the baseline.

    Attributes:
        tasks: Columns.
        rows: Label and one cell per task.
    """

    tasks: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]


def heat_map(board: Leaderboard) -> HeatMap | None:
    """Returns the gain of every row in every task; None if there is none.

    A cell is never coloured if the row or the baseline is at the floor in its task.
    """
    columns = [c for c in board.primary if any(c.task in row.gains for row in board.rows)]
    rows = [row for row in board.rows if row.gains and not row.floor]
    if not columns or not rows:
        return None
    base = next(row for row in board.rows if row.label == board.baseline)
    largest = max(abs(gain.estimate.mean) for row in rows for gain in row.gains.values()) or 1.0
    return HeatMap(
        tuple(c.task for c in columns),
        tuple((row.label, tuple(_cell(row, c, largest, base) for c in columns)) for row in rows),
    )


def _cell(row: Row, column: Column, largest: float, base: Row) -> HeatCell:
    gain = row.gains.get(column.task)
    if gain is None:
        return HeatCell(formatting.BLANK)
    found, floored = gain.estimate, column.key in row.at_floor | base.at_floor
    text = formatting.number(found.mean, 1, sign=True)
    told = found.low is not None and found.high is not None and not found.low <= 0 <= found.high and not floored
    look = ("better" if found.mean > 0 else "worse") if told else ""
    mark = {"better": " ▲", "worse": " ▼"}.get(look, formatting.MARK if floored else "")
    tip = f"{row.label}, {column.task}: {text} %, 95 % interval {formatting.interval(found)}, n = {found.n}"
    strength = 0.12 + (STRONGEST - 0.12) * min(1.0, abs(found.mean) / largest)
    return HeatCell(f"{text}{mark}", tip, look, round(strength, 2), found.mean)
