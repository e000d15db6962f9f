"""The tables of a study as Markdown, tidy CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict

from mtlbench.metrics.relative import PROTOCOL
from mtlbench.report.columns import Part, numbers_of, problem_summary
from mtlbench.report.formatting import Cell
from mtlbench.report.model import Column, ConditionBoard, ConditionRow, Leaderboard, Row
from mtlbench.report.statistics import Estimate, estimate
from mtlbench.report.verdict import verdict
from mtlbench.report.views import tables

_NUMBER = ("quantity", "protocol", "unit", "better", "seed", "mean", "std", "n", "low", "high", "at_floor")

GAP = {"protocol": "gap_closed@1", "unit": "%", "better": "higher"}
"""Share of the gap between the floor and the best value: quantity is a task, or ``gap_closed`` for the mean."""

FIELDS = ("label", "method", "rank", *_NUMBER)
"""Columns of the CSV: one line per number, over all seeds (``seed`` is empty) or of one seed.

``at_floor`` is ``yes`` where a table has the mark.
"""

CONDITION_FIELDS = ("label", "method", "condition", *_NUMBER)
"""The same where conditions vary, and nothing is ranked."""


def markdown(board: tables.AnyBoard) -> str:
    """Returns the whole comparison as Markdown, the verdict first."""
    lines = [f"# {_md(board.suite)}", "", _md(board.title), ""]
    lines += ["## Verdict", "", *(f"- **{_md(s.topic)}**: {_md(s.text)}" for s in verdict(board)), "", "## Table", ""]
    lines += [f"- **{word}**: {_md(text)}" for word, text in board.rules]
    lines += ["", *_md_table(tables.main(board, "markdown")), ""]
    lines += [f"- {_md(note)}" for note in board.notes]
    if others := tables.published(board):
        lines += ["", f"## {_md(others[0])}", "", *_md_table(others[1])]
    if compared := tables.differences(board):
        lines += ["", f"## {_md(compared[0])}", "", *_md_table(compared[1])]
    for section in tables.sections(board, "markdown"):
        lines += ["", f"## {_md(section.title)}", "", *_md_table(section.grid), ""]
        lines += [f"- {_md(note)}" for note in section.notes]
    if board.problems:
        lines += ["", f"## Without a result: {problem_summary(board)}", ""]
        lines += [
            f"- {p.state}: {_md(p.label)}, seed {p.seed}{f', `{p.run}`' if p.run else ''}: {_md(p.reason)}"
            for p in board.problems
        ]
    return "\n".join(lines) + "\n"


def tidy_csv(board: tables.AnyBoard) -> str:
    """Returns one line per label, condition where there are several, and quantity, in full precision."""
    stream = io.StringIO()
    if isinstance(board, Leaderboard):
        fields, records = (
            FIELDS,
            [{"rank": row.rank, **_named(row, r)} for row in board.rows for r in _records(board, row)],
        )
    else:
        fields, records = (
            CONDITION_FIELDS,
            [_named(row, r) for row in board.rows for r in _condition_records(board, row)],
        )
    writer = csv.DictWriter(stream, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in record.items()} for record in records)
    return stream.getvalue()


def groupings_json(board: Leaderboard) -> str:
    """Returns all that is known about groups of tasks as JSON: label -> seeds, rank correlation, affinity."""
    record = {
        g.label: {
            **asdict(g),
            "found": [{**asdict(f), "total_seconds": f.total_seconds, "correlation": f.correlation} for f in g.found],
        }
        for g in board.groupings
    }
    return json.dumps(record, indent=1) + "\n"


def tunings_json(board: Leaderboard) -> str:
    """Returns all trials of equal tuning as JSON: label -> trials, the chosen one, and seconds."""
    return json.dumps({tuning.label: asdict(tuning) for tuning in board.tunings}, indent=1) + "\n"


def latex(board: tables.AnyBoard) -> str:
    """Returns a LaTeX table for the package booktabs, with the settings of the comparison in comments above it."""
    parts = tables.main(board, "latex")
    align = "".join("l" if p.text else "r" for p in parts)
    comments = [_TEX_NEEDS, *(f"% {word}: {' '.join(text.split())}" for word, text in board.rules)]
    lines = [
        " & ".join(_tex_cell(cell) for cell in row) + r" \\" for row in zip(*(p.cells for p in parts), strict=True)
    ]
    # A bracket or an asterisk after the end of a line would be an argument of the command that ends it.
    rows = [f"{{}}{line}" if line.startswith(("[", "*")) else line for line in lines]
    head = " & ".join(_tex(p.head) for p in parts) + r" \\"
    below = [rf"\multicolumn{{{len(parts)}}}{{p{{\linewidth}}}}{{\footnotesize {_tex(t)}}} \\" for t in board.footnotes]
    body = [r"\toprule", head, r"\midrule", *rows, r"\bottomrule", *below]
    return "\n".join([*comments, rf"\begin{{tabular}}{{{align}}}", *body, r"\end{tabular}"]) + "\n"


def _records(board: Leaderboard, row: Row) -> Iterator[dict[str, object]]:
    for column in board.columns:
        if column.key in row.cells:
            yield _about(column) | _numbers(row.cells[column.key]) | _flag(column.key in row.at_floor)
            yield from _by_seed(_about(column), row.scores[column.key])
    if row.delta:
        about = {"quantity": "delta_m", "protocol": PROTOCOL, "unit": "%", "better": "higher"}
        yield about | _numbers(row.delta) | _flag(row.unfounded)
        yield from _by_seed(about, row.deltas)
    if row.margin:
        about = {"quantity": f"delta_m minus {board.against}", "protocol": PROTOCOL, "unit": "%", "better": "higher"}
        yield about | _numbers(row.margin.estimate) | _flag(row.unfounded)
    shares = {**row.gaps, **({"gap_closed": row.gap} if row.gap else {})}
    yield from ({"quantity": name, **GAP} | _numbers(share) for name, share in shares.items())
    yield from numbers_of(row)
    about = {"quantity": "rank_correlation_of_groups", "protocol": "spearman", "better": "higher"}
    yield from (about | _numbers(g.correlation) for g in board.groupings if g.label == row.label and g.correlation)


def _condition_records(board: ConditionBoard, row: ConditionRow) -> Iterator[dict[str, object]]:
    for condition, scores in row.scores.items():
        for column in board.columns:
            if values := scores[column.key]:
                about = {"condition": condition, **_about(column)}
                # The table's cells are of one metric, or of none.
                shown = row.values.get(condition) is values
                yield about | _numbers(estimate(values.values())) | _flag(shown and condition in row.at_floor)
                yield from _by_seed(about, values)
    for condition, values in row.values.items() if board.signed else ():
        if values:
            drop = {"condition": condition, "quantity": "drop", "unit": "%", "better": "lower"}
            yield drop | _numbers(estimate(values.values())) | _flag(condition in row.at_floor)
    for condition, share in row.gaps.items():
        yield {"condition": condition, "quantity": "gap_closed", **GAP} | _numbers(share)
    yield from numbers_of(row)


def csv_cell(value: object) -> object:
    """Returns a cell that no spreadsheet reads as a formula: text that begins like one gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _by_seed(about: Mapping[str, object], values: dict[int, float]) -> Iterator[dict[str, object]]:
    for seed, value in sorted(values.items()):
        yield {**about, "seed": seed, "mean": value, "n": 1}


def _named(row: Row | ConditionRow, record: dict[str, object]) -> dict[str, object]:
    return {"label": row.label, "method": row.method, **record}


def _about(column: Column) -> dict[str, object]:
    better = "higher" if column.higher_is_better else "lower"
    return {"quantity": column.task, "protocol": column.protocol, "unit": column.unit, "better": better}


def _numbers(estimate: Estimate) -> dict[str, object]:
    return {name: getattr(estimate, name) for name in ("mean", "std", "n", "low", "high")}


def _flag(marked: bool) -> dict[str, object]:
    return {"at_floor": "yes"} if marked else {}


def _md(text: str) -> str:
    plain = " ".join(text.split())
    for sign, inert in {"\\": "\\\\", "<": "&lt;", "|": "\\|", "*": "\\*", "_": "\\_", "`": "\\`", "[": "\\["}.items():
        plain = plain.replace(sign, inert)
    return plain


def _md_table(parts: Sequence[Part]) -> Iterable[str]:
    yield "| " + " | ".join(_md(p.head) for p in parts) + " |"
    yield "|" + "|".join(" :-- " if p.text else " --: " for p in parts) + "|"
    for row in zip(*(p.cells for p in parts), strict=True):
        yield "| " + " | ".join(_md_cell(cell) for cell in row) + " |"


def _md_cell(cell: Cell) -> str:
    text = f"**{_md(cell.text)}**" if cell.best else _md(cell.text)
    return f"{text}{cell.mark} {cell.spread}".strip()


_TEX_NEEDS = (
    r"% Needs \usepackage{booktabs}. A wide table fits in \resizebox{\linewidth}{!}{...} of \usepackage{graphicx}."
)

_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
    "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "Δ": r"$\Delta$",
    "Σ": r"$\Sigma$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "≤": r"$\leq$", "≥": r"$\geq$", "²": "$^2$",
    "−": "$-$", "–": "--", "…": r"\ldots{}", "†": r"$^\dagger$", "\u00a0": "~",
}  # fmt: skip

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu "
    "nu xi pi rho sigma tau upsilon phi chi psi omega"
)

_TEX |= {
    unicodedata.lookup(f"GREEK SMALL LETTER {'LAMDA' if name == 'lambda' else name}"): rf"$\{name}$"
    for name in _GREEK.split()
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)


def _tex_cell(cell: Cell) -> str:
    text = rf"\textbf{{{_tex(cell.text)}}}" if cell.best else _tex(cell.text)
    return f"{text}{_tex(cell.mark)} {_tex(cell.spread)}".strip()
