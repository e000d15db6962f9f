"""Plotly figures of scores, and of losses and gradients over training, used unchanged in HTML and in W&B."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mtlbench.report.figures.series import Series, labels_with
from mtlbench.report.figures.style import BIPOLAR, COLOURS, UNCERTAIN, safe, style
from mtlbench.report.model import ConditionBoard, Leaderboard
from mtlbench.report.statistics import Estimate, estimate

SHOWN = 6
"""Number of curves visible at first; the legend switches on the others."""

COSINE, WEIGHT = "gradient/cosine/", "gradient/weight/"

UPDATES = {
    "gradient/conflicts": "share of conflicting task pairs",
    "gradient/similarity": "gradient magnitude similarity",
    "gradient/condition": "condition number",
    "gradient/turn": "angle to the sum of gradients, degrees",
}

AllSeries = Mapping[str, Mapping[str, Series]]


def figures(board: Leaderboard, series: AllSeries) -> dict[str, go.Figure]:
    """Returns every figure with data, by title."""
    tasks = [c.task for c in board.primary]
    found = {
        f"Gain over {board.baseline} per task": gains(board),
        "Δm against cost": cost(board),
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
    for i, row in enumerate(board.rows):
        known = {c: estimate(row.values[c].values()) for c in board.conditions if row.values.get(c)}
        half = [(e.high - e.mean) if e.high is not None else 0 for e in known.values()]
        figure.add_scatter(
            x=[safe(c) for c in known],
            y=[e.mean for e in known.values()],
            name=safe(row.label),
            error_y={"array": half, "thickness": 1.4, "width": 4},
            mode="lines" if row.floor else "lines+markers",
            line={"color": COLOURS[i % len(COLOURS)], "width": 1.8, "dash": "dash" if row.floor else "solid"},
            customdata=[[e.n] for e in known.values()],
            hovertemplate=f"{safe(row.label)}, %{{x}}: %{{y:.4g}}, n = %{{customdata[0]}}<extra></extra>",
        )
    figure.update_xaxes(categoryorder="array", categoryarray=[safe(c) for c in board.conditions])
    return {board.quantity: style(figure, 420)} if figure.data else {}


def gains(board: Leaderboard) -> go.Figure | None:
    """Plots the relative gain over single-task training per task, paired by seed, with 95 % intervals."""
    # Far below the others, the floor would squeeze them.
    rows = [row for row in board.rows if row.gains and not row.floor][::-1]
    tasks = [c.task for c in board.primary if any(c.task in row.gains for row in rows)]
    if not tasks:
        return None
    figure = make_subplots(1, len(tasks), shared_yaxes=True, subplot_titles=[safe(t) for t in tasks])
    for column, task in enumerate(tasks, start=1):
        known = [(row.label, row.gains[task].estimate) for row in rows if task in row.gains]
        half = [(e.high - e.mean) if e.high is not None else 0 for _, e in known]
        figure.add_scatter(
            x=[e.mean for _, e in known],
            y=[safe(label) for label, _ in known],
            error_x={"array": half, "thickness": 1.4, "width": 4, "color": "rgba(128,128,128,0.9)"},
            mode="markers",
            marker={"size": 8, "color": [_verdict(e) for _, e in known]},
            customdata=[[e.n] for _, e in known],
            hovertemplate="%{y}: %{x:+.2f} %<br>n = %{customdata[0]}<extra></extra>",
            row=1,
            col=column,
        )
        figure.add_vline(x=0, line={"color": "rgba(128,128,128,0.8)", "width": 1}, row=1, col=column)  # type: ignore
        figure.update_xaxes(title_text="gain in %", row=1, col=column)
    return style(figure, 120 + 30 * len(rows), legend=False)


def _verdict(found: Estimate) -> str:
    """Returns the colour of a gain: green or red only if its interval excludes 0, grey otherwise and for one seed."""
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return UNCERTAIN
    return COLOURS[2] if found.mean > 0 else COLOURS[3]


def cost(board: Leaderboard) -> go.Figure | None:
    """Plots Δm with its 95 % interval against seconds per step."""
    known = [
        (row, row.delta, row.cost.values["seconds_per_step"])
        for row in board.rows
        if row.delta and row.cost and row.cost.values["seconds_per_step"]
    ]
    if not known:
        return None
    figure, named = go.Figure(), _named(board, [(row.label, delta.mean, s) for row, delta, s in known])
    for i, (row, delta, seconds) in enumerate(known):
        half = delta.high - delta.mean if delta.high is not None else 0
        figure.add_scatter(
            x=[seconds],
            y=[delta.mean],
            error_y={"array": [half], "thickness": 1.4, "width": 4},
            mode="markers+text",
            text=[safe(row.label) if row.label in named else ""],
            hovertext=[safe(row.label)],
            textposition="top right" if i % 2 else "bottom right",  # Neighbours in rank are often near in cost.
            marker={"size": 10, "color": COLOURS[i % len(COLOURS)]},
            hovertemplate=f"%{{hovertext}}<br>%{{x:.3g}} s per step<br>Δm %{{y:+.2f}} %, n = {delta.n}<extra></extra>",
        )
    _cost_axis(figure, [seconds for _, _, seconds in known])
    figure.update_yaxes(title_text="Δm in %")
    return style(figure, 460, legend=False)


def _named(board: Leaderboard, points: list[tuple[str, float, float]]) -> set[str]:
    """Returns labels to write beside their points: all of a few, else the references and what nothing dominates."""
    if len(points) <= 12:
        return {label for label, _, _ in points}
    front = {x for x, gain, cost in points if not any(g > gain and c <= cost for _, g, c in points)}
    return front | {board.baseline, "uniform"}


def _cost_axis(figure: go.Figure, seconds: list[float]) -> None:
    """Sets an axis with room on the right for the names; logarithmic only where a line would squeeze the points."""
    log = max(seconds) > 10 * min(seconds)
    places = [math.log10(x) for x in seconds] if log else seconds
    margin = 0.06 * (max(places) - min(places)) or 0.1 * abs(places[0]) or 0.1
    span = [min(places) - margin, max(places) + 3 * margin]
    figure.update_xaxes(title_text="seconds per step", type="log" if log else "linear", range=span)


def curves(board: Leaderboard, series: AllSeries, names: list[str], titles: list[str]) -> go.Figure | None:
    """Plots quantities over steps as small multiples: one line per label, with a band of one standard deviation."""
    kept = [(n, t) for n, t in zip(names, titles, strict=True) if any(labels_with(series, n))]
    if not kept:
        return None
    wide = min(3, len(kept))
    high = math.ceil(len(kept) / wide)
    figure = make_subplots(high, wide, subplot_titles=[safe(t) for _, t in kept], vertical_spacing=0.14 / high + 0.05)
    labels = [row.label for row in board.rows if row.label in series and not row.floor]
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
                _line(figure, label, series[label][name], COLOURS[i % len(COLOURS)], label not in named, look)
                named.add(label)
    for column in range(1, wide + 1):
        figure.update_xaxes(title_text="step", row=high, col=column)
    return style(figure, 110 + 250 * high)


def cosines(board: Leaderboard, series: AllSeries, tasks: list[str]) -> go.Figure | None:
    """Plots the mean cosine between the tasks' gradients, one matrix per label that logged them."""
    logged = [r.label for r in board.rows if any(n.startswith(COSINE) for n in series.get(r.label, ()))]
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
    return style(figure, 110 + 300 * high, legend=False)


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
    figure = make_subplots(high, wide, subplot_titles=[safe(x) for x in shown], shared_yaxes=True)
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
    return style(figure, 110 + (60 + 16 * len(pairs)) * high, legend=False)


def _colour(figure: go.Figure) -> None:
    figure.update_layout(coloraxis={"colorscale": BIPOLAR, "cmin": -1, "cmax": 1, "colorbar": {"thickness": 12}})


def _line(figure: go.Figure, label: str, s: Series, colour: str, listed: bool, look: dict[str, Any]) -> None:
    if s.n > 1:
        figure.add_scatter(
            x=[*s.steps, *s.steps[::-1]],
            y=[*s.high, *s.low[::-1]],
            fill="toself",
            fillcolor=colour,
            opacity=0.15,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            mode="lines",
            **look,
        )
    mode = "lines" if len(s.steps) > 3 else "lines+markers"  # A single point makes no line.
    figure.add_scatter(
        x=s.steps,
        y=s.mean,
        name=safe(label),
        mode=mode,
        line={"color": colour, "width": 1.8},
        showlegend=listed,
        hovertemplate=f"{safe(label)}: %{{y:.4g}} at step %{{x}}, n = {s.n}<extra></extra>",
        **look,
    )


def _visible(board: Leaderboard, labels: list[str]) -> set[str]:
    """Returns the labels shown at first: the best ones, and always the two references."""
    always = {board.baseline, "uniform"} & set(labels)
    return always | set([x for x in labels if x not in always][: SHOWN - len(always)])


def _matrix(by_name: Mapping[str, Series], tasks: list[str]) -> list[list[float | None]]:
    mean: dict[frozenset[str], float] = {frozenset([t]): 1.0 for t in tasks}
    for name, s in by_name.items():
        if name.startswith(COSINE):
            mean[frozenset(name.removeprefix(COSINE).split("|"))] = sum(s.mean) / len(s.mean)
    return [[mean.get(frozenset([a, b])) for b in tasks] for a in tasks]
