"""The table of a study as HTML for a notebook."""

from __future__ import annotations

import jinja2

from mtlbench.report.columns import problem_summary
from mtlbench.report.views import tables

_TABLE = """<div style="overflow-x:auto"><p><b>{{ board.suite }}</b>{% if board.title %}: {{ board.title }}{% endif %}\
</p><table><thead><tr>{% for p in parts %}<th title="{{ p.tip }}" style="text-align:{{ side(p) }}">{{ p.head }}</th>\
{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr>{% for part, cell in row %}<td style="text-align:{{ side(part) }};white-space:nowrap">\
{% if cell.best %}<b>{{ cell.text }}</b>{% else %}{{ cell.text }}{% endif %}{{ cell.mark }} \
<small>{{ cell.spread }}</small></td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{% for note in notes %}<p><small>{{ note }}</small></p>
{% endfor %}</div>
"""


def table(board: tables.AnyBoard) -> str:
    """Returns the main table and its footnotes as a fragment of HTML in which every name is escaped."""
    parts = tables.main(board, "html")
    rows = [list(zip(parts, cells, strict=True)) for cells in zip(*(p.cells for p in parts), strict=True)]
    problems = problem_summary(board)
    notes = [*board.footnotes, *([f"Without a result: {problems}."] if problems else [])]
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_TABLE)
    return template.render(
        board=board, parts=parts, rows=rows, notes=notes, side=lambda part: "left" if part.text else "right"
    )
