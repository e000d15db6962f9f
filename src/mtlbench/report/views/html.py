"""The report as one HTML file that works offline."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mtlbench.report.columns import problem_summary
from mtlbench.report.figures.affinity import affinity_figures
from mtlbench.report.figures.experts import read_usage, usage_figures
from mtlbench.report.figures.gallery import exhibits
from mtlbench.report.figures.series import read_series
from mtlbench.report.figures.sharing import read_sharing, sharing_figures
from mtlbench.report.figures.training import conditions, figures
from mtlbench.report.figures.tuning import tuning_figures
from mtlbench.report.model import Leaderboard
from mtlbench.report.reader import ReportInput
from mtlbench.report.views import tables
from mtlbench.visualise import SEGMENTATION, palette

TEMPLATE = "report.html.jinja"


def render(study: ReportInput, board: tables.AnyBoard) -> str:
    """Returns the report as HTML. Every name and message in it is escaped."""
    ranked = isinstance(board, Leaderboard)
    series = read_series(study) if ranked else {}  # A curve is of one label; over conditions it would mix runs.
    plots = figures(board, series) if isinstance(board, Leaderboard) else conditions(board)
    plots |= tuning_figures(board.tunings) if isinstance(board, Leaderboard) else {}
    plots |= affinity_figures(board.groupings) if isinstance(board, Leaderboard) else {}
    plots |= sharing_figures(read_sharing(study, board)) if isinstance(board, Leaderboard) else {}
    plots |= usage_figures(read_usage(study), series)
    drawn = {
        title: figure.to_html(full_html=False, include_plotlyjs=False, config=_CONFIG)
        for title, figure in plots.items()
    }
    done = set(study.results) - {p.run for p in board.problems}
    return _template().render(
        board=board,
        heading="Leaderboard" if ranked else "Methods by conditions",
        table=tables.main(board, "html"),
        published=tables.published(board),
        differences=tables.differences(board),
        sections=tables.sections(board, "html"),
        metrics=tables.every_metric(board),
        problems=problem_summary(board),
        figures={title: Markup(text) for title, text in drawn.items()},
        plotly=Markup(_plotly()) if drawn else "",
        exhibits=exhibits(study, [r.label for r in board.rows], done) if ranked else [],
        legends=_legends(study),
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE)


_CONFIG = {"displayModeBar": False, "responsive": True}


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    # Inside a script element only this sequence could end it early.
    return get_plotlyjs().replace("</script", "<\\/script")


def _legends(study: ReportInput) -> dict[str, list[tuple[str, str]]]:
    """Returns (colour, class name) pairs of each segmentation task."""
    legends: dict[str, list[tuple[str, str]]] = {}
    for task, about in study.plan["tasks"].items():
        names: list[Any] = list(about.get("class_names") or ())
        if about["kind"] in SEGMENTATION and names:
            colours = ["#" + bytes(c.tolist()).hex() for c in palette(len(names))]
            legends[task] = list(zip(colours, map(str, names), strict=True))
    return legends
