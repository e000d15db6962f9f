"""The report as one HTML file that works offline."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

from mtlbench.report import references
from mtlbench.report.columns import Part, TableColumn, grid, problem_summary
from mtlbench.report.figures.affinity import affinity_figures
from mtlbench.report.figures.evolution import evolution_figures
from mtlbench.report.figures.experts import read_usage, usage_figures
from mtlbench.report.figures.gallery import exhibits
from mtlbench.report.figures.regimes import read_regimes, regime_figures
from mtlbench.report.figures.scores import score_figures
from mtlbench.report.figures.series import read_series
from mtlbench.report.figures.sharing import read_sharing, sharing_figures
from mtlbench.report.figures.training import conditions, drawn, training_figures
from mtlbench.report.figures.tuning import tuning_figures
from mtlbench.report.model import Leaderboard
from mtlbench.report.reader import ReportInput, read_specs
from mtlbench.report.verdict import verdict
from mtlbench.report.views import embedded, tables
from mtlbench.report.views.heat import heat_map
from mtlbench.report.views.runs import MOST, all_runs, citation, commands
from mtlbench.visualise import SEGMENTATION, palette

if TYPE_CHECKING:
    import plotly.graph_objects as go

_HERE = Path(__file__).parent

TEMPLATE = "report.html.jinja"

GALLERY = 8
"""Most rows with example predictions: the best ones and the references."""

_PROBLEMS = (
    TableColumn(head="run", value=lambda p: p.run or None, group="name", text=True),
    TableColumn(head="state", value=lambda p: p.state, text=True),
    TableColumn(head="method", value=lambda p: p.label, text=True),
    TableColumn(head="seed", value=lambda p: p.seed),
    TableColumn(head="reason", value=lambda p: p.reason, group="long", text=True),
)


def render(study: ReportInput, board: tables.AnyBoard) -> str:
    """Returns the report as HTML. Every name and message in it is escaped."""
    scores, trainings = map(embedded.drawings, _figures(study, board))
    done = set(study.results) - {p.run for p in board.problems}
    specs = read_specs(study)
    shown = drawn(board, [row.label for row in board.rows], GALLERY) if isinstance(board, Leaderboard) else []
    return _template().render(
        board=board,
        verdict=verdict(board),
        heading="Leaderboard" if isinstance(board, Leaderboard) else "Methods by conditions",
        table=tables.main(board, "html"),
        pinned=_pinned,
        heat=heat_map(board) if isinstance(board, Leaderboard) else None,
        published=tables.published(board),
        differences=tables.differences(board),
        sections=tables.sections(board, "html"),
        metrics=tables.every_metric(board),
        problems=problem_summary(board),
        faults=grid(_PROBLEMS, board.problems[:MOST]),
        scores=scores,
        trainings=trainings,
        library=embedded.library() if scores or trainings else "",
        exhibits=exhibits(study, shown, done),
        shown=f"; {len(shown)} of {len(board.rows)} rows are shown" if len(shown) + 1 < len(board.rows) else "",
        legends=_legends(study),
        runs=all_runs(study, board, specs),
        commands=commands(study.plan),
        papers=references.bibtex(study, specs),
        citation=citation(study.plan),
        # Both files are the package's own, and neither holds the end of its element.
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    return environment.get_template(TEMPLATE)


def _code(text: str) -> Markup:
    """Returns a text, escaped, with its parts between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _figures(study: ReportInput, board: tables.AnyBoard) -> tuple[dict[str, go.Figure], dict[str, go.Figure]]:
    """Returns the figures of scores and those of training, by title; the first stand before further tables."""
    usages = read_usage(study)
    if not isinstance(board, Leaderboard):  # A curve is of one label; over conditions it would mix runs.
        return conditions(board), usage_figures(usages, {})
    labels = {*drawn(board, [row.label for row in board.rows]), *usages}
    series = read_series(study, labels)
    return score_figures(board), {
        **training_figures(board, series),
        **tuning_figures(board.tunings),
        **affinity_figures(board.groupings),
        **evolution_figures(study.plan),
        **regime_figures(read_regimes(study)),
        **sharing_figures(read_sharing(study, board)),
        **usage_figures(usages, series),
    }


def _pinned(parts: Sequence[Part]) -> str:
    """Returns the heading of the column that stays in view: the first one of names."""
    return next((part.head for part in parts if part.group == "name" and part.text), parts[0].head)


def _legends(study: ReportInput) -> dict[str, list[tuple[str, str]]]:
    """Returns (colour, class name) pairs of each segmentation task."""
    legends: dict[str, list[tuple[str, str]]] = {}
    for task, about in study.plan["tasks"].items():
        names: list[Any] = list(about.get("class_names") or ())
        if about["kind"] in SEGMENTATION and names:
            colours = ["#" + bytes(c.tolist()).hex() for c in palette(len(names))]
            legends[task] = list(zip(colours, map(str, names), strict=True))
    return legends
