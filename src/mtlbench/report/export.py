"""The leaderboard as Markdown, tidy CSV and a LaTeX table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from mtlbench.metrics.relative import PROTOCOL
from mtlbench.report.board import Leaderboard, Row
from mtlbench.report.grid import Part, comparison_grid, leaderboard_grid, problem_summary
from mtlbench.report.statistics import Estimate
from mtlbench.report.words import Cell

FIELDS = ("label", "method", "rank", "quantity", "protocol", "unit", "better", "mean", "std", "n", "low", "high")
"""Columns of the CSV: one line per number."""


def markdown(board: Leaderboard) -> str:
    """Returns the whole leaderboard as Markdown."""
    lines = [f"# {_md(board.suite)}", "", _md(board.title), ""]
    lines += [f"- **{word}**: {_md(text)}" for word, text in board.rules]
    lines += ["", *_md_table(leaderboard_grid(board)), ""]
    lines += [f"- {_md(note)}" for note in board.notes]
    if board.comparisons:
        lines += ["", "## Differences in Δm, paired by seed", "", *_md_table(comparison_grid(board))]
    if board.problems:
        lines += ["", f"## Without a result: {problem_summary(board)}", ""]
        lines += [
            f"- {p.state}: {_md(p.label)}, seed {p.seed}{f', `{p.run}`' if p.run else ''}: {_md(p.reason)}"
            for p in board.problems
        ]
    return "\n".join(lines) + "\n"


def tidy_csv(board: Leaderboard) -> str:
    """Returns one line per label and quantity, in full precision."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in board.rows:
        for record in _records(board, row):
            writer.writerow({"label": row.label, "method": row.method, "rank": row.rank, **record})
    return stream.getvalue()


def latex(board: Leaderboard) -> str:
    """Returns a table for the package booktabs; what was compared stands in comments above it."""
    parts = [p for p in leaderboard_grid(board) if p.head not in ("95 % interval", "train")]
    align = "".join("l" if p.head == "method" else "r" for p in parts)
    comments = [f"% {word}: {' '.join(text.split())}" for word, text in board.rules]
    rows = [" & ".join(_tex_cell(cell) for cell in row) + r" \\" for row in zip(*(p.cells for p in parts), strict=True)]
    head = " & ".join(_tex(p.head) for p in parts) + r" \\"
    body = [r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*comments, rf"\begin{{tabular}}{{{align}}}", *body, r"\end{tabular}"]) + "\n"


def _records(board: Leaderboard, row: Row) -> Iterator[dict[str, object]]:
    for column in board.columns:
        if column.key in row.cells:
            better = "higher" if column.higher_is_better else "lower"
            about = {"quantity": column.task, "protocol": column.protocol, "unit": column.unit, "better": better}
            yield about | _numbers(row.cells[column.key])
    if row.delta:
        yield {"quantity": "delta_m", "protocol": PROTOCOL, "unit": "%", "better": "higher"} | _numbers(row.delta)
    for name, unit in {
        "seconds_per_step": "s",
        "peak_memory_gib": "GiB",
        "parameters": "",
        "train_seconds": "s",
    }.items():
        value = getattr(row.cost, name) if row.cost else None
        if value is not None:
            yield {"quantity": name, "unit": unit, "better": "lower", "mean": value}


def _numbers(estimate: Estimate) -> dict[str, object]:
    return {name: getattr(estimate, name) for name in ("mean", "std", "n", "low", "high")}


def _md(text: str) -> str:
    plain = " ".join(text.split())
    for sign, inert in {"\\": "\\\\", "<": "&lt;", "|": "\\|", "*": "\\*", "_": "\\_", "`": "\\`", "[": "\\["}.items():
        plain = plain.replace(sign, inert)
    return plain


def _md_table(parts: Sequence[Part]) -> Iterable[str]:
    yield "| " + " | ".join(_md(p.head) for p in parts) + " |"
    yield "|" + "|".join(" :-- " if p.head in ("method", "against") else " --: " for p in parts) + "|"
    for row in zip(*(p.cells for p in parts), strict=True):
        yield "| " + " | ".join(_md_cell(cell) for cell in row) + " |"


def _md_cell(cell: Cell) -> str:
    text = f"**{_md(cell.text)}**" if cell.best else _md(cell.text)
    return f"{text} {cell.spread}".strip()


_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
    "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "Δ": r"$\Delta$", "±": r"$\pm$", "−": "$-$", "–": "--",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)


def _tex_cell(cell: Cell) -> str:
    text = rf"\textbf{{{_tex(cell.text)}}}" if cell.best else _tex(cell.text)
    return f"{text} {_tex(cell.spread)}".strip()
