"""Methods over several studies: in the terminal, as CSV and as a page."""

from __future__ import annotations

from collections.abc import Iterator

import jinja2
from markupsafe import Markup

from mtlbench.errors import coloured_output
from mtlbench.report import formatting
from mtlbench.report.columns import Part, TableColumn, grid
from mtlbench.report.statistics import ALPHA
from mtlbench.report.tables.across import Across

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Methods over {{ found.studies|length }} studies</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
        color: #222; background: #fff; color-scheme: light dark }
 @media (prefers-color-scheme: dark) { body { color: #ddd; background: #16181c } }
 div.wide { overflow-x: auto } table { border-collapse: collapse }
 th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap }
 .text { text-align: left }
</style></head><body>
<h1>Methods over {{ found.studies|length }} studies</h1>
<div class="wide"><table><thead><tr>{% for p in table %}<th {% if p.text %}class="text"{% endif %}>{{ p.head }}</th>
{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr>{% for part, cell in row %}<td {% if part.text %}class="text"{% endif %}>{{ cell }}</td>
{% endfor %}</tr>{% endfor %}</tbody></table></div>
{% for note in notes %}<p>{{ note }}</p>{% endfor %}
<script>{{ plotly }}</script>{{ figure }}
</body></html>
"""


def table(found: Across) -> tuple[Part, ...]:
    """Returns the table: mean rank with its interval, and Δm in each study."""
    columns = [
        TableColumn(head="method", value=lambda row: row.label, group="name", text=True),
        TableColumn(head="mean rank", value=lambda row: row.mean, show=lambda v: formatting.number(v, 2)),
        TableColumn(
            head="95 % interval",
            value=lambda row: f"[{formatting.number(row.low, 2)}, {formatting.number(row.high, 2)}]",
        ),
        *(
            TableColumn(
                head=f"Δm {name}",
                value=lambda row, i=i: row.deltas[i],  # type: ignore[misc]
                show=lambda v: formatting.number(v, 2, sign=True),
            )
            for i, name in enumerate(found.studies)
        ),
    ]
    return grid(columns, found.rows)


def notes(found: Across) -> tuple[str, ...]:
    """Returns how to read the table and what it can show."""
    methods, studies = len(found.rows), len(found.studies)
    lines = [
        "The mean rank is taken over studies; rank 1 has the highest Δm. Intervals come from a bootstrap over studies "
        "and over seeds within them.",
        f"Nemenyi test: mean ranks that differ by less than {found.critical:.2f} cannot be told apart at "
        f"{100 * ALPHA:g} %.",
    ]
    if found.friedman is not None:
        lines.append(f"Friedman test that all methods are equal: p = {formatting.probability(found.friedman)}.")
    if found.critical >= methods - 1:
        lines.append(
            f"{studies} studies are too few to tell {methods} methods apart: even the largest possible difference in "
            f"mean rank, {methods - 1}, is below the critical one."
        )
    if found.left_out:
        lines.append(f"Left out, because only some of the studies have them: {', '.join(found.left_out)}.")
    return tuple(lines)


def show(found: Across) -> None:
    """Prints table and notes in the terminal."""
    from rich.console import Console
    from rich.text import Text

    from mtlbench.report.views.terminal import fit

    console = Console(file=coloured_output())
    for part in fit(table(found), console):
        console.print(part)
    for note in notes(found):
        console.print(Text(note, style="dim"))


def lines(found: Across) -> Iterator[list[object]]:
    """Yields the lines of the CSV, in full precision."""
    yield [
        "method",
        "mean_rank",
        "low",
        "high",
        *(f"{what} {s}" for s in found.studies for what in ("delta_m", "rank")),
    ]
    for row in found.rows:
        pairs = zip(row.deltas, row.ranks, strict=True)
        yield [row.label, row.mean, row.low, row.high, *(value for pair in pairs for value in pair)]


def page(found: Across) -> str:
    """Returns table, notes and critical-difference plot as one HTML file that works offline."""
    from plotly.offline import get_plotlyjs

    from mtlbench.report.figures.ranks import rank_figure

    parts = table(found)
    rows = [list(zip(parts, cells, strict=True)) for cells in zip(*(part.cells for part in parts), strict=True)]
    figure = rank_figure(found).to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
    return (
        jinja2.Environment(autoescape=True)
        .from_string(_PAGE)
        .render(
            found=found,
            table=parts,
            rows=rows,
            notes=notes(found),
            plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
            figure=Markup(figure),
        )
    )
