"""Results published by others, shown below the leaderboard and never ranked: one CSV file per data set."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from mtlbench.errors import StoreError
from mtlbench.report import formatting
from mtlbench.report.columns import Part
from mtlbench.report.formatting import Cell
from mtlbench.report.model import Column, Leaderboard, PublishedRow

HEADING = "Published results (other code, schedules and weights; not ranked)"

NAMES = ("method", "backbone", "source")

NEEDS = {
    "module": "data module",
    "options": "options",
    "labels": "removed labels",
    "image_size": "image size",
    "split": "split",
    "images": "images per split",
}
"""What must agree for a published row to be comparable, and how a note calls it."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class PublishedTable:
    """The content of one CSV file.

    Attributes:
        rows: Its rows.
        needs: By recipe, what our runs must have for its rows to be comparable, see `NEEDS`.
    """

    rows: tuple[PublishedRow, ...] = ()
    needs: Mapping[str, Record] = field(default_factory=dict)


def load(suite: str) -> PublishedTable:
    """Reads the published rows for a suite; the table is empty if no file has its name.

    A suffix after an underscore names a variant on the same data: ``pascal_invpt`` uses the rows of ``pascal``.

    Raises:
        StoreError: If the file is not as `published/pascal.csv` explains.
    """
    # Looked up, not opened: the name of a suite may be anything.
    path = {file.stem: file for file in Path(__file__).parent.glob("*.csv")}.get(suite.partition("_")[0])
    if path is None:
        return PublishedTable()
    lines = path.read_text(encoding="utf-8").splitlines()
    needs = dict(_need(path, line) for line in lines if line.startswith("#! "))
    records = csv.DictReader(line for line in lines if not line.startswith("#"))
    return PublishedTable(tuple(_row(path, record, needs) for record in records), needs)


def comparable(suite: str, runs: Iterable[tuple[Record, Record]]) -> tuple[tuple[PublishedRow, ...], str]:
    """Returns the published rows whose data, image size, split and recipe are those of our runs, and a note.

    Args:
        suite: Name of the suite.
        runs: ``spec.json`` and ``result.json`` of every finished run that serves a task.

    Returns:
        The rows, and why others are left out; ``""`` if none are or if no run is finished.
    """
    table = load(suite)
    facts = [_facts(spec, result) for spec, result in runs]
    if not table.rows or not facts:
        return (), ""
    faults = {recipe: _faults(need, facts) for recipe, need in table.needs.items()}
    if all(faults.values()):
        nearest = min(faults, key=lambda recipe: len(faults[recipe]))
        return (), f"Published results are left out. Those of the recipe {nearest} need {'; '.join(faults[nearest])}."
    left_out = ", ".join(recipe for recipe, found in faults.items() if found)
    note = f"Published results of other recipes are left out: {left_out}." if left_out else ""
    return tuple(row for row in table.rows if not faults[row.recipe]), note


def published_grid(board: Leaderboard) -> tuple[str, tuple[Part, ...]] | None:
    """Returns heading and table of the published rows that share a protocol with the leaderboard; None without any.

    Only columns whose task and protocol are those of a column of ours are shown.
    """
    columns = [c for c in board.columns if any(c.key in row.values for row in board.published)]
    rows = tuple(row for row in board.published if any(c.key in row.values for c in columns))
    if not rows:
        return None
    names = (Part(name, tuple(Cell(getattr(row, name)) for row in rows), "name", text=True) for name in NAMES)
    return HEADING, (*names, *(_scores(rows, column) for column in columns))


def _facts(spec: Record, result: Record) -> dict[str, Any]:
    """Returns what a run used of what `NEEDS` lists; None where its files do not say."""
    data = spec.get("data") or {}
    # The size of the data is the image size of the model, which is compared by itself.
    options = {key: value for key, value in (data.get("options") or {}).items() if key != "size" and value is not None}
    return {
        "module": data.get("module"),
        "options": options,
        "labels": data.get("labels") or {},
        "image_size": (spec.get("model") or {}).get("image_size"),
        "split": result.get("split"),
        "images": result.get("images"),
    }


def _faults(need: Record, facts: Sequence[Record]) -> list[str]:
    """Returns every need that some run does not meet, with what was found."""
    faults = []
    for key, what in NEEDS.items():
        wanted = need.get(key) or {}
        if other := [fact[key] for fact in facts if fact[key] != wanted]:
            faults.append(f"{what} {_text(wanted)} (found {_text(other[0])})")
    return faults


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return "no record" if value is None else str(value)


def _scores(rows: tuple[PublishedRow, ...], column: Column) -> Part:
    texts = [str(row.values.get(column.key, formatting.BLANK)) for row in rows]
    return Part(formatting.metric(column), tuple(map(Cell, texts)), "score", column.protocol)


def _need(path: Path, line: str) -> tuple[str, Record]:
    try:
        _, recipe, text = line.split(" ", 2)
        need = json.loads(text)
        unknown = set(need) - set(NEEDS)
    except (ValueError, TypeError) as error:
        raise StoreError(f"A line '#! recipe {{...}}' holds a JSON object. Found {line!r} in {path}.") from error
    if unknown:
        raise StoreError(f"A recipe needs {', '.join(NEEDS)}. Found {', '.join(sorted(unknown))} in {path}.")
    return recipe, need


def _row(path: Path, record: dict[str, str], needs: Mapping[str, Record]) -> PublishedRow:
    values = {}
    try:
        for head, text in record.items():
            if head not in (*NAMES, "recipe") and text:
                task, protocol, unit = head.split(" ")
                values[task, protocol] = Decimal(text).scaleb(-2 if unit == "%" else 0)
        recipe = next(name for name in needs if name == record["recipe"])
        return PublishedRow(recipe, record["method"], record["backbone"], record["source"], values)
    except (ValueError, KeyError, AttributeError, TypeError, StopIteration, InvalidOperation) as error:
        raise StoreError(
            "A published row has a recipe with a '#!' line, method, backbone, source, and a number or nothing under "
            f"each 'task protocol unit'. Found {record} in {path} ({error!r}). Correct that line."
        ) from error
