"""The report as one HTML file that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mtlbench.pictures import SEGMENTATION, palette
from mtlbench.report.board import Leaderboard
from mtlbench.report.figures import figures
from mtlbench.report.gallery import exhibits
from mtlbench.report.grid import comparison_grid, leaderboard_grid, metrics_grid, problem_summary
from mtlbench.report.read import Study
from mtlbench.report.series import read_series

TEMPLATE = "report.html.jinja"


def render(study: Study, board: Leaderboard) -> str:
    """Returns the report as HTML. Every name and message in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = {title: figure.to_html(full_html=False, include_plotlyjs=False, config=_CONFIG) for title, figure in (
        figures(board, read_series(study)).items())}  # fmt: skip
    broken = {p.run for p in board.problems}
    return environment.get_template(TEMPLATE).render(
        board=board,
        table=leaderboard_grid(board),
        comparisons=comparison_grid(board),
        metrics=metrics_grid(board),
        problems=problem_summary(board),
        figures={title: Markup(text) for title, text in drawn.items()},
        plotly=Markup(_plotly()) if drawn else "",
        exhibits=exhibits(study, [r.label for r in board.rows], set(study.results) - broken),
        legends=_legends(study),
    )


_CONFIG = {"displayModeBar": False, "responsive": True}


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    # Inside a script element only this sequence could end it early.
    return get_plotlyjs().replace("</script", "<\\/script")


def _legends(study: Study) -> dict[str, list[tuple[str, str]]]:
    """Returns (colour, class name) pairs of each segmentation task."""
    legends: dict[str, list[tuple[str, str]]] = {}
    for task, about in study.plan["tasks"].items():
        names: list[Any] = list(about.get("class_names") or ())
        if about["kind"] in SEGMENTATION and names:
            colours = ["#" + bytes(c.tolist()).hex() for c in palette(len(names))]
            legends[task] = list(zip(colours, map(str, names), strict=True))
    return legends
