"""The LaTeX table: every sign of a name is set as it is, every row has its cells, and rows cannot become arguments."""

from __future__ import annotations

import re

import pytest

from mtlbench.report import build
from mtlbench.report.views.files import latex
from tests.report.test_conditions import board_of
from tests.report.test_report import SEGDEPTH, study_of

HOSTILE = r"a_b & 50 % #1 {x} $5 ~ ^ \input{y} <|> Δ± ↑ λ=1 × 2²"
SET = (
    r"a\_b \& 50 \% \#1 \{x\} \$5 \textasciitilde{} \textasciicircum{} \textbackslash{}input\{y\} "
    r"\textless{}\textbar{}\textgreater{} $\Delta$$\pm$ $\uparrow$ $\lambda$=1 $\times$ 2$^2$"
)

MATHS = "Delta|Sigma|alpha|lambda|pm|times|uparrow|downarrow|dagger"
TEXTS = "textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|ldots"


def rows_of(text: str) -> list[list[str]]:
    """Returns the cells of every row, after a check that nothing but the known commands has a meaning for TeX."""
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    begin, end = re.escape(r"\begin{tabular}{"), re.escape(r"\end{tabular}")
    (found,) = re.findall(rf"^{begin}([lr]+)}}\n(.*)\n{end}$", code, re.DOTALL)
    columns, body = len(found[0]), re.sub(r"^\\(top|mid|bottom)rule$", "", found[1], flags=re.MULTILINE)
    rows = [line for line in body.split("\n") if line]
    assert all(row.endswith(r" \\") for row in rows) and not any(row.startswith(("[", "*")) for row in rows)
    cells = []
    for row in rows:
        if row.startswith(note := rf"\multicolumn{{{columns}}}{{p{{\linewidth}}}}{{\footnotesize "):
            found_cells = [row.removeprefix(note).removesuffix(r"} \\")]
        else:
            found_cells = re.split(r"(?<!\\)&", row.removesuffix(r" \\"))
            assert len(found_cells) == columns, row
        for cell in found_cells:
            assert not re.search(r"[\\{}$&#^_~%<>|]|[^\x00-\x7f]", _plain(cell)), cell
        cells.append([cell.strip() for cell in found_cells])
    return cells


def _plain(cell: str) -> str:
    """Returns a cell without what TeX reads as text, mathematics or one of the commands that the table uses."""
    rest = re.sub(rf"\\({TEXTS}){{}}|\\[&%$#_{{}}]", "", cell)
    rest = re.sub(rf"\$(-|\^?(\\({MATHS})|\d))\$", "", rest)
    return re.sub(r"\\textbf{([^{}]*)}", r"\1", rest.replace("{}", ""))


def test_every_sign_of_a_name_is_text() -> None:
    table = {
        "single_task": [(0.4, 0.6), (0.41, 0.61)],
        HOSTILE: [(0.39, 0.62), (0.37, 0.66)],
        "floor": [(0.5, 0.1)] * 2,
    }
    found = rows_of(latex(build(*study_of(table, (0, 1), SEGDEPTH))))
    assert any(SET in row for row in found)
    assert [row[0] for row in found if len(row) == 1] and r"\#" in found[0]


@pytest.mark.parametrize("label", ["[2pt]", "*starred"])
def test_a_name_is_no_argument_of_the_row_before(label: str) -> None:
    by_condition = {"1 %": [(0.4, 0.9), (0.4, 0.8)], "10 %": [(0.4, 0.6), (0.4, 0.5)]}
    about = {"kind": "low_resource", "columns": ["1 %", "10 %"], "target": "depth", "text": "few labels"}
    found = rows_of(latex(board_of({"dense": by_condition, label: by_condition}, about, seeds=2)))
    assert [row[0] for row in found[1:3]] == ["dense", f"{{}}{label}"]


def test_a_comment_stays_on_its_line() -> None:
    study, *rest = study_of({"single_task": [(0.4, 0.6)]}, (0,), SEGDEPTH)
    study["overrides"] = ["a=1\n\\input{evil}", "b=\r\\input{evil}"]
    text = latex(build(study, *rest))
    assert text.startswith("% Needs \\usepackage{booktabs}.") and "\r" not in text
    assert [line[0] for line in text.splitlines() if "evil" in line] == ["%"]
    rows_of(text)
