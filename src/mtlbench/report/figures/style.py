"""Colours, axes and escaping shared by all figures."""

from __future__ import annotations

import html

import plotly.graph_objects as go

COLOURS = ("#4c78a8", "#e4803a", "#54a24b", "#c8504f", "#8b6cb5", "#3aa6a0", "#b58b2e", "#d57aa5", "#7f7f7f", "#9c6b4e")
"""Mid-tones legible on white and on near-black."""

BIPOLAR = [[0, "rgba(200,80,79,1)"], [0.5, "rgba(128,128,128,0.06)"], [1, "rgba(76,120,168,1)"]]
"""Diverging colours of values that may be negative or positive."""

UNCERTAIN = "#8a8f96"
"""Colour of a value whose interval holds 0, or that has no interval: it must not look like a finding."""

LINE = "rgba(128,128,128,0.28)"


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
    figure.update_xaxes(gridcolor=LINE, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=LINE, zeroline=False, automargin=True)
    return figure


def safe(text: str) -> str:
    """Escapes a name so that plotly shows it literally."""
    # Plotly interprets some HTML tags in its texts.
    return html.escape(text, quote=False)
