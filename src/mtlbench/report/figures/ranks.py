"""The critical-difference plot: mean ranks on one axis, with a bar over methods that cannot be told apart."""

from __future__ import annotations

import plotly.graph_objects as go

from mtlbench.report.figures.style import COLOURS, UNCERTAIN, safe, style
from mtlbench.report.tables.across import Across

_STEP = 26
"""Pixels between two lines of the figure."""


def rank_figure(across: Across) -> go.Figure:
    """Plots mean ranks with bootstrap intervals, best on top, and the groups within the critical difference."""
    rows = across.rows
    figure = go.Figure()
    figure.add_scatter(
        x=[row.mean for row in rows],
        y=[safe(row.label) for row in rows],
        mode="markers",
        marker={"color": COLOURS[0], "size": 9},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [row.high - row.mean for row in rows],
            "arrayminus": [row.mean - row.low for row in rows],
            "thickness": 1.5,
        },
        hovertemplate="%{y}: mean rank %{x:.2f}<extra></extra>",
    )
    for group in across.tied:
        figure.add_scatter(
            x=[_mean(across, group[0]), _mean(across, group[-1])],
            y=[safe(group[0]), safe(group[-1])],
            mode="lines",
            line={"color": UNCERTAIN, "width": 6},
            opacity=0.35,
            hovertemplate=f"{safe(', '.join(group))}: not told apart<extra></extra>",
        )
    figure.update_xaxes(title_text=f"mean rank (critical difference {across.critical:.2f})", range=_span(across))
    figure.update_yaxes(autorange="reversed")
    return style(figure, 110 + _STEP * len(rows), legend=False)


def _mean(across: Across, label: str) -> float:
    return next(row.mean for row in across.rows if row.label == label)


def _span(across: Across) -> list[float]:
    return [0.7, len(across.rows) + 0.3]
