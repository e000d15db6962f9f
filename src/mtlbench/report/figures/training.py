"""Plotly figures of losses, scores and gradients over training, used unchanged in HTML and in W&B."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mtlbench.report.figures.series import Series, labels_with
from mtlbench.report.figures.style import BIPOLAR, UNCERTAIN, describe, line, safe, style
from mtlbench.report.model import ConditionBoard, Leaderboard
from mtlbench.report.statistics import estimate

SHOWN = 6
"""Number of curves visible at first; the legend switches on the others."""

DRAWN = 24
"""Most rows with curves: the best ones and the references. A legend with more names cannot be read."""

MATRICES = 12
"""Most rows with a matrix of gradient cosines."""

COSINE, WEIGHT = "gradient/cosine/", "gradient/weight/"

UPDATES = {
    "gradient/conflicts": "share of conflicting task pairs",
    "gradient/similarity": "gradient magnitude similarity",
    "gradient/condition": "condition number",
    "gradient/turn": "angle to the sum, °",
}

_COSINES = "Blue: two tasks pull the shared parameters the same way. Red: they conflict."

AllSeries = Mapping[str, Mapping[str, Series]]


def training_figures(board: Leaderboard, series: AllSeries) -> dict[str, go.Figure]:
    """Returns every figure of what happened during training with data, by title."""
    tasks = [c.task for c in board.primary]
    found = {
        "Training loss": curves(board, series, [f"loss/{t}" for t in tasks], tasks),
        "Validation scores during training": curves(
            board,
            series,
            [f"val/{c.task}/{c.protocol}" for c in board.primary],
            [f"{c.task}: {c.protocol} {c.arrow}" for c in board.primary],
        ),
        "Gradient conflicts and update direction": curves(board, series, list(UPDATES), list(UPDATES.values())),
        "Weight of each task's gradient in the update": curves(board, series, [f"{WEIGHT}{t}" for t in tasks], tasks),
        "Gradient cosine between tasks, mean over training": cosines(board, series, tasks),
        "Gradient cosine between tasks, over training": cosines_over_time(board, series),
    }
    return {title: figure for title, figure in found.items() if figure is not None}


def conditions(board: ConditionBoard) -> dict[str, go.Figure]:
    """Plots the studied quantity over conditions, one line per label, with 95 % intervals."""
    figure = go.Figure()
    # A difference of scores has another scale than scores.
    shown = [c for c in board.conditions if board.signed or any(c in row.scores for row in board.rows)]
    for i, row in enumerate(board.rows):
        known = {c: estimate(row.values[c].values()) for c in shown if row.values.get(c)}
        half = [(e.high - e.mean) if e.high is not None else 0 for e in known.values()]
        figure.add_scatter(
            x=[safe(c) for c in known],
            y=[e.mean for e in known.values()],
            name=safe(row.label),
            error_y={"array": half, "thickness": 1.4, "width": 4},
            mode="lines" if row.floor else "lines+markers",
            line={**line(i), **({"color": UNCERTAIN, "dash": "longdash"} if row.floor else {})},
            customdata=[[e.n] for e in known.values()],
            hovertemplate=f"{safe(row.label)}, %{{x}}: %{{y:.4g}}, n = %{{customdata[0]}}<extra></extra>",
        )
    # Without a type, plotly reads "1 %" and "10 %" as numbers.
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=[safe(c) for c in shown])
    return {board.quantity: style(figure, 420)} if figure.data else {}


def curves(board: Leaderboard, series: AllSeries, names: list[str], titles: list[str]) -> go.Figure | None:
    """Plots quantities over steps as small multiples: one line per label, with a band of one standard deviation."""
    # One evaluation is a point, which the leaderboard shows better.
    kept = [
        (n, t)
        for n, t in zip(names, titles, strict=True)
        if any(len(found.steps) > 1 for _, found in labels_with(series, n))
    ]
    if not kept:
        return None
    wide = min(3, len(kept))
    high = math.ceil(len(kept) / wide)
    figure = make_subplots(high, wide, subplot_titles=[safe(t) for _, t in kept], vertical_spacing=0.14 / high + 0.05)
    labels = drawn(board, [row.label for row in board.rows if row.label in series])
    first = _visible(board, labels)
    named: set[str] = set()
    for place, (name, _) in enumerate(kept):
        for i, label in enumerate(labels):
            if name in series[label]:
                look = {
                    "legendgroup": label,
                    "visible": True if label in first else "legendonly",
                    "row": place // wide + 1,
                    "col": place % wide + 1,
                }
                _line(figure, label, series[label][name], line(i), label not in named, look)
                named.add(label)
    for column in range(1, wide + 1):
        figure.update_xaxes(title_text="step", row=high, col=column)
    style(figure, 110 + 250 * high)
    return describe(
        figure, "Mean over seeds; the band is one standard deviation. The legend shows and hides rows.", "curves"
    )


def drawn(board: Leaderboard, labels: list[str], count: int = DRAWN) -> list[str]:
    """Returns the rows to draw, in the order of the table: the first ones, and always the two references."""
    floors = {row.label for row in board.rows if row.floor}
    known = [label for label in labels if label not in floors]
    kept = _first(board, known, count)
    return [label for label in known if label in kept]


def cosines(board: Leaderboard, series: AllSeries, tasks: list[str]) -> go.Figure | None:
    """Plots the mean cosine between the tasks' gradients, one matrix per label that logged them."""
    logged = [r.label for r in board.rows if any(n.startswith(COSINE) for n in series.get(r.label, ()))][:MATRICES]
    if not logged:
        return None
    wide = min(3, len(logged))
    high = math.ceil(len(logged) / wide)
    figure = make_subplots(high, wide, subplot_titles=[safe(x) for x in logged], horizontal_spacing=0.09)
    for place, label in enumerate(logged):
        values = _matrix(series[label], tasks)
        figure.add_heatmap(
            z=values,
            x=[safe(t) for t in tasks],
            y=[safe(t) for t in tasks],
            zmin=-1,
            zmax=1,
            texttemplate="%{z:.2f}",
            hoverongaps=False,
            coloraxis="coloraxis",
            hovertemplate="%{x} and %{y}: %{z:.3f}<extra></extra>",
            row=place // wide + 1,
            col=place % wide + 1,
        )
        anchor = {"scaleanchor": f"x{place + 1 if place else ''}", "constrain": "domain"}  # Square cells.
        figure.update_yaxes(**anchor, row=place // wide + 1, col=place % wide + 1)
    figure.update_xaxes(constrain="domain")
    _colour(figure)
    figure.update_yaxes(autorange="reversed")
    least = (110 + 42 * len(tasks)) * wide  # A cell takes 42 pixels, names 110.
    figure = style(figure, 110 + 300 * high, legend=False)
    return describe(figure, f"Mean over seeds and steps. {_COSINES}", width=least)


def cosines_over_time(board: Leaderboard, series: AllSeries) -> go.Figure | None:
    """Plots gradient cosines over training, one map per label: pairs of tasks by step."""
    labels = [row.label for row in board.rows if any(n.startswith(COSINE) for n in series.get(row.label, ()))]
    first = _visible(board, labels)
    shown = [label for label in labels if label in first]
    if not shown:
        return None
    pairs = [name for name in series[shown[0]] if name.startswith(COSINE)]
    names = [safe(pair.removeprefix(COSINE).replace("|", ", ")) for pair in pairs]
    wide = min(2, len(shown))
    high = math.ceil(len(shown) / wide)
    height = 110 + (60 + 16 * len(pairs)) * high
    gap = 70 / (height - 86) if high > 1 else None  # 70 pixels, for steps and a title.
    titles = [safe(x) for x in shown]
    figure = make_subplots(high, wide, subplot_titles=titles, shared_yaxes=True, vertical_spacing=gap)
    for place, label in enumerate(shown):
        known = [series[label].get(pair) for pair in pairs]
        figure.add_heatmap(
            z=[s.mean if s else [] for s in known],
            x=next(s.steps for s in known if s),
            y=names,
            coloraxis="coloraxis",
            hovertemplate="%{y}: %{z:.3f} at step %{x}<extra></extra>",
            row=place // wide + 1,
            col=place % wide + 1,
        )
    _colour(figure)
    for column in range(1, wide + 1):
        figure.update_xaxes(title_text="step", row=high, col=column)
    return describe(style(figure, height, legend=False), f"Mean over seeds. {_COSINES}")


def _colour(figure: go.Figure) -> None:
    figure.update_layout(coloraxis={"colorscale": BIPOLAR, "cmin": -1, "cmax": 1, "colorbar": {"thickness": 12}})


def _line(figure: go.Figure, label: str, s: Series, pen: dict[str, Any], listed: bool, look: dict[str, Any]) -> None:
    if s.n > 1:
        figure.add_scatter(
            x=[*s.steps, *s.steps[::-1]],
            y=[*map(_short, s.high), *map(_short, s.low[::-1])],
            fill="toself",
            fillcolor=pen["color"],
            opacity=0.15,
            meta="band",
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            mode="lines",
            **look,
        )
    mode = "lines" if len(s.steps) > 3 else "lines+markers"  # A single point makes no line.
    figure.add_scatter(
        x=s.steps,
        y=[*map(_short, s.mean)],
        name=safe(label),
        mode=mode,
        line=pen,
        showlegend=listed,
        hovertemplate=f"{safe(label)}: %{{y:.4g}} at step %{{x}}, n = {s.n}<extra></extra>",
        **look,
    )


def _short(value: float) -> float:
    """Rounds a point of a curve to five digits, more than a screen shows: pages stay small."""
    return float(f"{value:.5g}")


def _visible(board: Leaderboard, labels: list[str]) -> set[str]:
    return _first(board, labels, SHOWN)


def _first(board: Leaderboard, labels: list[str], count: int) -> set[str]:
    """Returns the first rows of the table, and always the two references."""
    always = {board.baseline, "uniform"} & set(labels)
    return always | set([x for x in labels if x not in always][: count - len(always)])


def _matrix(by_name: Mapping[str, Series], tasks: list[str]) -> list[list[float | None]]:
    mean: dict[frozenset[str], float] = {frozenset([t]): 1.0 for t in tasks}
    for name, s in by_name.items():
        if name.startswith(COSINE):
            mean[frozenset(name.removeprefix(COSINE).split("|"))] = sum(s.mean) / len(s.mean)
    return [[mean.get(frozenset([a, b])) for b in tasks] for a in tasks]
