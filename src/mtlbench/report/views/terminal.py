"""The tables of a study in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mtlbench.report.columns import Part, problem_summary
from mtlbench.report.formatting import Cell
from mtlbench.report.model import Problem
from mtlbench.report.verdict import verdict
from mtlbench.report.views import tables


def show_board(board: tables.AnyBoard, console: Console) -> None:
    """Prints rules, table, notes, comparisons and problems; the verdict comes last, so it stays in view."""
    console.print(Text(f"{board.suite}: {board.title}" if board.title else board.suite, style="bold"))
    console.print(_lines(board.rules))
    for table in fit(tables.main(board, "terminal"), console):
        console.print(table)
        console.print()
    for note in board.notes:
        console.print(Text(note, style="dim"))
    if others := tables.published(board):
        console.print(Text(f"\n{others[0]}", style="bold"))
        for table in fit(others[1], console):
            console.print(table)
    if compared := tables.differences(board):
        console.print(Text(f"\n{compared[0]}", style="bold"))
        console.print(_table(compared[1]))
    for section in tables.sections(board, "terminal"):
        console.print(Text(f"\n{section.title}", style="bold"))
        for table in fit(section.grid, console) if section.title == "Costs" else [_table(section.grid)]:
            console.print(table)
        for note in section.notes:
            console.print(Text(note, style="dim"))
    if board.problems:
        console.print(Text(f"\nWithout a result: {problem_summary(board)}", style="bold"))
        console.print(_problems(board.problems))
    console.print(Text("\nVerdict", style="bold"))
    console.print(_lines((statement.topic, statement.text) for statement in verdict(board)))


def fit(parts: Sequence[Part], console: Console) -> list[Table]:
    """Returns one table if it fits, else a summary (Δm and cost) and the tasks, each cut where the width ends."""
    if _fits(parts, console):
        return [_table(parts)]
    names = [p for p in parts if p.group == "name"]
    tables = []
    for groups in (("delta", "cost"), ("score",)):
        page = list(names)
        for part in (p for p in parts if p.group in groups):
            if len(page) > len(names) and not _fits([*page, part], console):
                tables.append(_table(page))
                page = names = [p for p in names if p.head == "method"]
            page = [*page, part]
        if len(page) > len(names):
            tables.append(_table(page))
        names = [p for p in names if p.head == "method"]
    return tables


def _fits(parts: Sequence[Part], console: Console) -> bool:
    return Measurement.get(console, console.options.update(width=10_000), _table(parts)).maximum <= console.width


def _table(parts: Sequence[Part]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for part in parts:
        justify: Literal["left", "right"] = "left" if part.text else "right"
        table.add_column(escape(part.head), justify=justify, no_wrap=not part.text, overflow="fold")
    for row in zip(*(part.cells for part in parts), strict=True):
        table.add_row(*(_cell(cell) for cell in row))
    return table


def _cell(cell: Cell) -> Text:
    # `Text`, not a string: a label such as "[red]" is a name, not an instruction.
    text = Text(cell.text + cell.mark, style="bold" if cell.best else "")
    if cell.spread:
        text.append(" " + cell.spread, style="not bold dim")
    return text


def _lines(rules: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for word, text in rules:
        grid.add_row(Text(word, style="dim"), Text(text))
    grid.add_row("", "")
    return grid


def _problems(problems: Sequence[Problem]) -> Table:
    """Returns one line per reason: unfinished runs of one label are counted together."""
    grid = Table.grid(padding=(0, 2))
    for (label, state, reason), group in groupby(problems, key=lambda p: (p.label, p.state, p.reason)):
        seeds = sorted({p.seed for p in group})
        style = "red" if state == "failed" else "yellow"
        grid.add_row(Text(state, style=style), Text(label), Text("seed " + ", ".join(map(str, seeds))), Text(reason))
    return grid
