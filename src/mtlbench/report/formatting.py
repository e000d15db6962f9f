"""Formats numbers identically in every view."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from mtlbench.report.model import Column, ConditionBoard, ConditionRow, Leaderboard, PairedTime, Row
from mtlbench.report.statistics import Estimate, estimate

BLANK = "–"

MARK = "†"
"""Marks what is not better than the floor."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table as text.

    Attributes:
        text: The value.
        spread: Uncertainty after the value, for example ``"± 0.01"``; may go on its own line.
        best: Whether it is the best of its column.
        mark: Sign directly after the value that a footnote explains, ``""`` for none.
        number: The value in full precision, by which a table is sorted; ``None`` for words and blanks.
    """

    text: str
    spread: str = ""
    best: bool = False
    mark: str = ""
    number: float | None = None

    def __str__(self) -> str:
        return f"{self.text}{self.mark} {self.spread}".strip()


def number(value: float, digits: int, sign: bool = False) -> str:
    """Formats a number with fixed decimals, a true minus sign, and no negative zero."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", "−")


def decimals(values: Iterable[float]) -> int:
    """Returns the number of decimals that shows about four figures of the largest value."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return 3 if largest < 10 else 2 if largest < 100 else 1


def numbers(values: Iterable[float | None]) -> list[str]:
    """Formats a column of numbers with the same number of decimals."""
    every = list(values)
    digits = decimals(v for v in every if v is not None)
    return [BLANK if v is None else number(v, digits) for v in every]


def metric(column: Column) -> str:
    """Formats a metric in full: task, protocol, unit and direction."""
    unit = f" [{column.unit}]" if column.unit else ""
    return f"{column.task} {column.protocol}{unit} {column.arrow}"


def score_cells(rows: Iterable[Row], column: Column) -> list[Cell]:
    """Formats a column of scores."""
    every = [(row, row.cells.get(column.key)) for row in rows]
    means = [cell.mean for _, cell in every if cell]
    digits = decimals(means)
    full = [cell.mean for row, cell in every if cell and cell.n == len(row.planned) and not row.floor]
    best = (max if column.higher_is_better else min)(full) if len(full) > 1 else None
    return [Cell(BLANK) if c is None else _score(row, column, c, digits, best) for row, c in every]


def delta(value: Estimate) -> Cell:
    """Returns a signed mean with its standard deviation."""
    return Cell(number(value.mean, 2, sign=True), _spread(value, 2))


def mean(value: Estimate, digits: int) -> Cell:
    """Returns a mean with its standard deviation."""
    return Cell(number(value.mean, digits), _spread(value, digits))


def cell(value: Any, show: Callable[[Any], str | Cell], best: bool = False, flagged: bool = False) -> Cell:
    """Returns a value as a cell, blank for ``None``."""
    if value is None:
        return Cell(BLANK)
    shown = value if isinstance(value, Cell) else show(value)
    shown = shown if isinstance(shown, Cell) else Cell(shown)
    return replace(shown, best=best, mark=MARK if flagged else "", number=_plain(value))


def condition_cell(board: ConditionBoard, condition: str, row: ConditionRow) -> Cell | None:
    """Returns mean and interval under one condition, and the number of seeds if some are missing."""
    values = row.values.get(condition) or {}
    if not values:
        return None
    found = estimate(values.values())
    spread = "" if found.low is None else interval(found, board.digits, sign=board.signed)
    partial = f"(n={found.n})" if found.n != len(row.planned) else ""
    text = number(found.mean, board.digits, board.signed)
    return Cell(text, f"{spread} {partial}".strip(), number=found.mean)


def interval(estimate: Estimate | None, digits: int = 2, sign: bool = True) -> str:
    """Returns an interval, by default of a signed quantity."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return BLANK
    return f"[{number(estimate.low, digits, sign)}, {number(estimate.high, digits, sign)}]"


def probability(p: float | None) -> str:
    """Returns a p-value."""
    return BLANK if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def seconds(value: float) -> str:
    """Returns seconds per step with three figures."""
    return f"{value:#.3g}".rstrip(".")


def memory(value: float) -> str:
    """Returns peak memory in GiB."""
    return f"{value:.2f}"


def whole(value: float) -> str:
    """Returns a whole number."""
    return f"{value:,.0f}"


def ratio(value: PairedTime) -> Cell:
    """Returns a ratio with its interval."""
    spread = "" if value.low is None or value.high is None else f"[{value.low:.2f}, {value.high:.2f}]"
    return Cell(f"{value.ratio:.2f}", spread)


def count(value: float) -> str:
    """Returns a number of parameters or FLOPs with a suffix."""
    for limit, suffix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.0f}"


def duration(value: float) -> str:
    """Formats seconds in a suitable unit."""
    return f"{value / 3600:.1f} h" if value >= 3600 else f"{value / 60:.1f} min" if value >= 60 else f"{value:.0f} s"


def shortened(text: str, most: int) -> str:
    """Returns a message on one line, cut after a number of characters."""
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def seeds(row: Row) -> str:
    """Returns the number of complete seeds, with the number planned if some are missing."""
    done, planned = len(row.seeds), len(row.planned)
    return str(done) if done == planned else f"{done}/{planned}"


def heading(board: Leaderboard, column: Column) -> str:
    """Returns the head of a score column: task, unit and direction."""
    unit = f" [{column.unit}]" if column.unit else ""
    return f"{column.task}{unit} {column.arrow}"


def share(value: Estimate) -> Cell:
    """Returns a mean in per cent with its standard deviation."""
    return Cell(number(value.mean, 1), _spread(value, 1))


def _score(row: Row, column: Column, cell: Estimate, digits: int, best: float | None) -> Cell:
    partial = f"(n={cell.n})" if cell.n != len(row.planned) else ""
    spread = f"{_spread(cell, digits)} {partial}".strip()
    first = cell.mean == best and not partial and not row.floor
    mark = MARK if column.key in row.at_floor else ""
    return Cell(number(cell.mean, digits), spread, first, mark, cell.mean)


def _plain(value: Any) -> float | None:
    """Returns the number that a value of a cell stands for; ``None`` for words."""
    if isinstance(value, Cell):
        return value.number
    found = getattr(value, "mean", getattr(value, "ratio", value))
    return float(found) if isinstance(found, int | float) else None


def _spread(estimate: Estimate, digits: int) -> str:
    return "" if estimate.std is None else f"± {estimate.std:.{digits}f}"
