"""Colours, axes and escaping shared by all figures."""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go

from mtlbench.report.statistics import Estimate

COLOURS = ("#2274b5", "#d08700", "#009e73", "#b9609c", "#d55e00", "#3aa0d8", "#7f7f7f", "#8b6f3e")
"""Colours of series, after Okabe and Ito: legible on white and on near-black, and distinct to colour-blind readers."""

DASHES = ("solid", "dash", "dot", "dashdot")
"""Patterns of lines; the next one begins after half of the colours, since the halves resemble each other."""

BETTER, WORSE = "#2274b5", "#d55e00"
"""Colours of a difference whose interval excludes 0. Blue and orange, because red and green look alike to many."""

BIPOLAR = [[0, "rgba(200,80,79,1)"], [0.5, "rgba(128,128,128,0.06)"], [1, "rgba(76,120,168,1)"]]
"""Diverging colours of values that may be negative or positive."""

UNCERTAIN = "#8a8f96"
"""Colour of a value whose interval holds 0, or that has no interval: it must not look like a finding."""

GRID = "rgba(128,128,128,0.28)"


def line(number: int) -> dict[str, Any]:
    """Returns colour and pattern of the series with a number; the first 16 all differ."""
    dash = DASHES[2 * number // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[number % len(COLOURS)], "width": 1.8, "dash": dash}


def shade(found: Estimate | None) -> str:
    """Returns the colour of a difference: that of a gain or of a loss only if its interval excludes 0, else grey."""
    if found is None or found.low is None or found.high is None or found.low <= 0 <= found.high:
        return UNCERTAIN
    return BETTER if found.mean > 0 else WORSE


def describe(figure: go.Figure, caption: str, kind: str = "", **more: Any) -> go.Figure:
    """Adds the caption that the page prints below a figure, and what its script needs to know about it.

    Args:
        figure: The figure.
        caption: How to read it.
        kind: ``"curves"`` gets switches for scale and smoothing, ``"cost"`` a choice of cost and placed labels.
        more: Data for the script, and ``width``: least width in pixels.
    """
    figure.update_layout(meta={"caption": caption, "kind": kind, **more})
    return figure


def style(figure: go.Figure, height: int, legend: bool = True) -> go.Figure:
    """Applies the common layout; the background is transparent, so the page sets light or dark mode."""
    clear = "rgba(0,0,0,0)"
    figure.update_layout(
        template="none",
        height=height,
        paper_bgcolor=clear,
        plot_bgcolor=clear,
        showlegend=legend,
        font={"family": "system-ui, sans-serif", "size": 12, "color": "#777"},
        margin={"l": 60, "r": 20, "t": 36, "b": 50},
        legend={"orientation": "h", "yanchor": "top", "y": -56 / (height - 86)},  # 56 pixels, under the axis title
    )
    figure.update_annotations(font_size=13)
    figure.update_xaxes(gridcolor=GRID, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True)
    return figure


def safe(text: str) -> str:
    """Escapes a name so that plotly shows it literally."""
    # Plotly interprets some HTML tags in its texts.
    return html.escape(text, quote=False)
