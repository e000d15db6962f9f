"""Rows published by others, shown under our own and never ranked with them: one CSV file for each data set."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from mtlbench.errors import StoreError
from mtlbench.report import formatting
from mtlbench.report.columns import Part
from mtlbench.report.formatting import Cell
from mtlbench.report.model import Column, Leaderboard

HEADING = "Published by others: their code, schedules and weights, so not ranked with the rows above"

NAMES = ("method", "backbone", "source")


@dataclass(frozen=True)
class PublishedRow:
    """One line of a table of a paper or repository.

    Attributes:
        method: Name, as its authors call it.
        backbone: Encoder, ``""`` where the source does not say.
        source: Where the numbers stand.
        values: Score by (task, protocol) with its printed digits, in the unit of that protocol: shares in [0, 1].
    """

    method: str
    backbone: str
    source: str
    values: dict[tuple[str, str], Decimal]


def load(suite: str) -> tuple[PublishedRow, ...]:
    """Returns the published rows for a suite; none if no file has its name.

    A suffix after an underscore names a variant on the same data: ``pascal_invpt`` uses the rows of ``pascal``.

    Raises:
        StoreError: If the file is not as `published/pascal.csv` explains.
    """
    # Looked up, not opened: the name of a suite may be anything.
    path = {file.stem: file for file in Path(__file__).parent.glob("*.csv")}.get(suite.partition("_")[0])
    if path is None:
        return ()
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return tuple(_row(path, record) for record in csv.DictReader(lines))


def published_grid(board: Leaderboard) -> tuple[str, tuple[Part, ...]] | None:
    """Returns heading and table of the published rows that share a protocol with the leaderboard; None without any.

    Only columns whose task and protocol are those of a column of ours are shown.
    """
    rows = load(board.suite)
    columns = [c for c in board.columns if any(c.key in row.values for row in rows)]
    rows = tuple(row for row in rows if any(c.key in row.values for c in columns))
    if not rows:
        return None
    names = (Part(name, tuple(Cell(getattr(row, name)) for row in rows), "name", text=True) for name in NAMES)
    return HEADING, (*names, *(_scores(rows, column) for column in columns))


def _scores(rows: tuple[PublishedRow, ...], column: Column) -> Part:
    texts = [str(row.values.get(column.key, formatting.BLANK)) for row in rows]
    return Part(formatting.metric(column), tuple(map(Cell, texts)), "score", column.protocol)


def _row(path: Path, record: dict[str, str]) -> PublishedRow:
    values = {}
    try:
        for head, text in record.items():
            if head not in NAMES and text:
                task, protocol, unit = head.split(" ")
                values[task, protocol] = Decimal(text).scaleb(-2 if unit == "%" else 0)
        return PublishedRow(record["method"], record["backbone"], record["source"], values)
    except (ValueError, KeyError, AttributeError, TypeError, InvalidOperation) as error:
        raise StoreError(
            f"A published row has method, backbone, source, and a number or nothing under each 'task protocol unit'. "
            f"Found {record} in {path} ({error!r}). Mend that line."
        ) from error
