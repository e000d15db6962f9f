"""Heat maps of task affinities: recipients by sources."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mtlbench.report.figures.style import BIPOLAR, safe, style
from mtlbench.report.groups import Affinity, Grouping


def affinity_figures(groupings: Sequence[Grouping]) -> dict[str, go.Figure]:
    """Returns one figure per kind of affinity, by title; rows with identical values share a map."""
    kinds: dict[str, dict[Affinity, list[str]]] = {}
    for grouping in groupings:
        if grouping.affinity:
            kinds.setdefault(grouping.affinity.what, {}).setdefault(grouping.affinity, []).append(grouping.label)
    return {
        f"{what[:1].upper()}{what[1:]}: recipients (rows) by sources (columns)": heat_maps(maps)
        for what, maps in kinds.items()
    }


def heat_maps(maps: dict[Affinity, list[str]]) -> go.Figure:
    """Plots one map per table, all on one scale that ignores the diagonal."""
    wide = min(2, len(maps))
    high = math.ceil(len(maps) / wide)
    titles = [f"{safe(', '.join(labels))} (mean over seeds, n = {a.seeds})" for a, labels in maps.items()]
    figure = make_subplots(high, wide, subplot_titles=titles, horizontal_spacing=0.14)
    for place, affinity in enumerate(maps):
        names = [safe(task) for task in affinity.tasks]
        figure.add_heatmap(
            z=affinity.values,
            x=names,
            y=names,
            texttemplate="%{z:.2g}",
            coloraxis="coloraxis",
            hoverongaps=False,
            hovertemplate="%{y} with %{x}: %{z:.4g}<extra></extra>",
            row=place // wide + 1,
            col=place % wide + 1,
        )
        anchor = {"scaleanchor": f"x{place + 1 if place else ''}", "constrain": "domain"}  # Square cells.
        figure.update_yaxes(**anchor, row=place // wide + 1, col=place % wide + 1)
    largest = max(_largest(affinity) for affinity in maps) or 1.0
    axis = {"colorscale": BIPOLAR, "cmin": -largest, "cmax": largest, "colorbar": {"thickness": 12}}
    figure.update_layout(coloraxis=axis)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text="source", constrain="domain")
    for row in range(1, high + 1):
        figure.update_yaxes(title_text="recipient", title_standoff=12, row=row, col=1)
    return style(figure, 130 + (90 + 44 * max(len(a.tasks) for a in maps)) * high, legend=False)


def _largest(affinity: Affinity) -> float:
    """Returns the largest magnitude off the diagonal."""
    cells = [
        abs(value)
        for i, row in enumerate(affinity.values)
        for j, value in enumerate(row)
        if i != j and value is not None
    ]
    return max(cells, default=0.0)
