"""Plotly figures of the final scores: seeds, gains per task, cost, and ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mtlbench.report.columns import COSTS
from mtlbench.report.figures.style import UNCERTAIN, describe, safe, shade, style
from mtlbench.report.model import Column, Leaderboard, Row
from mtlbench.report.statistics import Estimate, estimate
from mtlbench.report.tables.ranking import REFERENCE

ZERO = {"color": "rgba(128,128,128,0.8)", "width": 1}
WIDE = 3
"""Most panels side by side: more would be too narrow for their axes at the width of a laptop."""

BAR = {"thickness": 1.4, "width": 4, "color": "rgba(128,128,128,0.9)"}

Point = tuple[Row, float, float]
"""Row, cost, Δm."""


def score_figures(board: Leaderboard) -> dict[str, go.Figure]:
    """Returns every figure with data, by title."""
    found = {
        "Δm of every seed": seeds(board),
        f"Gain over {board.baseline} per task": gains(board),
        "Δm against cost": cost(board),
        "Mean rank over tasks": ranks(board),
    }
    return {title: figure for title, figure in found.items() if figure is not None}


def seeds(board: Leaderboard) -> go.Figure | None:
    """Plots Δm of every seed as a dot, and the mean with the interval of the paired difference."""
    rows = [row for row in board.rows if row.delta and not row.floor][::-1]
    if not rows:
        return None
    figure = go.Figure()
    points = [(safe(row.label), seed, value) for row in rows for seed, value in row.deltas.items()]
    _dots(figure, points, "seed %{customdata}: Δm %{x:+.2f} %")
    margins = [row.margin.estimate if row.margin else None for row in rows]
    figure.add_scatter(
        x=[row.delta.mean for row in rows if row.delta],
        y=[safe(row.label) for row in rows],
        error_x={"array": [_half(m) for m in margins], **BAR},
        mode="markers",
        marker={"size": 9, "symbol": "diamond", "color": _shades(rows)},
        hovertemplate="%{y}: mean Δm %{x:+.2f} %<extra></extra>",
    )
    figure.add_vline(x=0, line=ZERO)
    _rows_only(figure, len(rows))
    figure.update_xaxes(title_text="Δm in %")
    caption = (
        f"One circle per seed; the diamond is the mean, with the 95 % interval of the paired difference from "
        f"{board.against}. {_colours()}"
    )
    return describe(style(figure, 110 + 26 * len(rows), legend=False), caption)


def gains(board: Leaderboard) -> go.Figure | None:
    """Plots the relative gain over single-task training per task, paired by seed, with 95 % intervals."""
    # Far below the others, the floor would squeeze them.
    rows = [row for row in board.rows if row.gains and not row.floor][::-1]
    columns = [c for c in board.primary if any(c.task in row.gains for row in rows)]
    if not columns:
        return None
    base = next(row for row in board.rows if row.label == board.baseline)
    titles = [safe(c.task) for c in columns]
    wide = min(WIDE, len(columns))
    high = math.ceil(len(columns) / wide)
    figure = make_subplots(high, wide, shared_yaxes=True, subplot_titles=titles, vertical_spacing=0.24 / high)
    for number, column in enumerate(columns):
        place = {"row": number // wide + 1, "col": number % wide + 1}
        known = [(row.label, row.gains[column.task].estimate) for row in rows if column.task in row.gains]
        low = {row.label for row in rows if column.key in row.at_floor | base.at_floor}
        figure.add_scatter(
            x=[e.mean for _, e in known],
            y=[safe(label) for label, _ in known],
            error_x={"array": [_half(e) for _, e in known], **BAR},
            mode="markers",
            marker={
                "size": 8,
                "symbol": "diamond",
                "color": [UNCERTAIN if label in low else shade(e) for label, e in known],
            },
            customdata=[[e.n] for _, e in known],
            hovertemplate="%{y}: %{x:+.2f} %<br>n = %{customdata[0]}<extra></extra>",
            **place,
        )
        spots = [(safe(r.label), s, v) for r in rows for s, v in by_seed(r, base, column).items()]
        _dots(figure, spots, "seed %{customdata}: %{x:+.2f} %", place)
        figure.add_vline(x=0, line=ZERO, **place)  # type: ignore[arg-type]
    for number in range(wide):
        figure.update_xaxes(title_text="gain in %", row=high, col=number + 1)
    _rows_only(figure, len(rows))
    caption = f"One circle per seed; the diamond is the mean with its 95 % interval, paired by seed. {_colours()}"
    return describe(style(figure, 60 + high * (60 + 30 * len(rows)), legend=False), caption)


def by_seed(row: Row, base: Row, column: Column) -> dict[int, float]:
    """Returns the relative gain in per cent over the baseline by seed, relative to its mean over common seeds."""
    ours, theirs = row.scores.get(column.key, {}), base.scores.get(column.key, {})
    common = sorted(set(ours) & set(theirs))
    reference = estimate(theirs[s] for s in common).mean if common else 0.0
    if not reference or row is base:
        return {}
    factor = (100 if column.higher_is_better else -100) / reference
    return {s: factor * (ours[s] - theirs[s]) for s in common}


def cost(board: Leaderboard) -> go.Figure | None:
    """Plots Δm against a cost that the reader chooses, with the Pareto front: no row on it is beaten in both."""
    known = cost_axes(board)
    if not known:
        return None
    first = known[0]
    figure = go.Figure()
    figure.add_scatter(
        x=first["front"][0], y=first["front"][1], mode="lines", hoverinfo="skip",
        line={"color": UNCERTAIN, "width": 1.5, "dash": "dot", "shape": "hv"},
    )  # fmt: skip
    rows = _competing(board)
    margins = [row.margin.estimate if row.margin else None for row in rows]
    figure.add_scatter(
        x=first["values"],
        y=[row.delta.mean for row in rows if row.delta],
        error_y={"array": [_half(m) for m in margins], **BAR},
        mode="markers+text" if len(rows) <= 12 else "markers",
        text=[safe(row.label) for row in rows],
        textposition="top right",
        marker={"size": 10, "color": _shades(rows)},
        hovertemplate="%{text}<br>%{x:.4g}<br>Δm %{y:+.2f} %<extra></extra>",
    )
    figure.update_xaxes(title_text=first["title"], type="log" if first["log"] else "linear")
    figure.update_yaxes(title_text="Δm in %")
    caption = (
        "The dotted line is the Pareto front: for a row on it, no other row has both a higher Δm and a lower cost. "
        f"Bars are 95 % intervals of the paired difference from {board.against}. {_colours()}"
    )
    references = [i for i, row in enumerate(rows) if row.label in (board.baseline, REFERENCE)]
    style(figure, 480, legend=False)
    return describe(figure, caption, "cost", costs=known, references=references)


def cost_axes(board: Leaderboard) -> list[dict[str, Any]]:
    """Returns every cost in which rows differ: title, a value per row, scale, and the corners of the Pareto front."""
    rows = _competing(board)
    found = []
    paired = {id(row): row.cost.paired.ratio for row in rows if row.cost and row.cost.paired}
    choices = [("time of a step, relative", [paired.get(id(row)) for row in rows])] if paired else []
    choices += [(c.tip, [row.cost.values.get(c.key) if row.cost else None for row in rows]) for c in COSTS]
    for title, values in choices:
        points = [(row, x, row.delta.mean) for row, x in zip(rows, values, strict=True) if x and row.delta]
        if len({x for _, x, _ in points}) < 2:
            continue
        on = front(points)
        low, high = min(x for _, x, _ in points), max(x for _, x, _ in points)
        found.append(
            {
                "title": title,
                "values": values,
                "log": high > 10 * low,  # A linear axis would squeeze the cheap rows.
                "front": [[x for _, x, _ in on], [y for *_, y in on]],
                "on": [i for i, row in enumerate(rows) if any(row is r for r, *_ in on)],
            }
        )
    return found


def front(points: Sequence[Point]) -> list[Point]:
    """Returns the points that no other point beats in cost and Δm, by rising cost."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p[1], -p[2])):
        if not kept or point[2] > kept[-1][2]:
            kept.append(point)
    return kept


def ranks(board: Leaderboard) -> go.Figure | None:
    """Plots the mean rank over tasks, with its interval over seeds, and the rank in every task."""
    rows = _competing(board)
    columns = [c for c in board.primary if c.in_delta_m]
    if len(rows) < 2 or len(columns) < 2:
        return None
    common = sorted(set.intersection(*(set(row.deltas) for row in rows)))
    if not common:
        return None
    table = {(c.task, s): _ranks(rows, c, s) for c in columns for s in common}
    by_task = [{c.task: estimate(table[c.task, s][i] for s in common).mean for c in columns} for i in range(len(rows))]
    means = [
        estimate(math.fsum(table[c.task, s][i] for c in columns) / len(columns) for s in common)
        for i in range(len(rows))
    ]
    order = sorted(range(len(rows)), key=lambda i: -means[i].mean)
    figure = go.Figure()
    spots = [(safe(rows[i].label), task, rank) for i in order for task, rank in by_task[i].items()]
    _dots(figure, spots, "%{customdata}: rank %{x:.2f}")
    figure.add_scatter(
        x=[means[i].mean for i in order],
        y=[safe(rows[i].label) for i in order],
        error_x={"array": [_half(means[i]) for i in order], **BAR},
        mode="markers",
        marker={"size": 9, "symbol": "diamond", "color": UNCERTAIN},
        hovertemplate="%{y}: mean rank %{x:.2f}<extra></extra>",
    )
    _rows_only(figure, len(rows))
    figure.update_xaxes(title_text="rank, 1 is best")
    caption = (
        "One circle per task, mean over seeds; the diamond is the mean over tasks with its 95 % interval over seeds."
    )
    return describe(style(figure, 110 + 26 * len(rows), legend=False), caption)


def _ranks(rows: Sequence[Row], column: Column, seed: int) -> list[float]:
    """Returns the rank of every row in one task and seed; equal scores share the mean of their ranks."""
    sign = -1 if column.higher_is_better else 1
    values = [sign * row.scores[column.key][seed] for row in rows]
    return [1 + sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2 for v in values]


def _competing(board: Leaderboard) -> list[Row]:
    return [row for row in board.rows if row.delta and not row.floor]


def _dots(
    figure: go.Figure, points: Sequence[tuple[str, Any, float]], hover: str, place: dict[str, int] | None = None
) -> None:
    """Adds small circles: (row, seed or task, value)."""
    figure.add_scatter(
        x=[float(f"{value:.5g}") for *_, value in points],
        y=[label for label, *_ in points],
        customdata=[safe(str(which)) for _, which, _ in points],
        mode="markers",
        marker={"size": 6, "symbol": "circle-open", "color": "rgba(128,128,128,0.85)"},
        hovertemplate=f"%{{y}}, {hover}<extra></extra>",
        **(place or {}),
    )


def _rows_only(figure: go.Figure, count: int) -> None:
    """Ends the axis of names at the first and last one; plotly's margin grows with their number."""
    figure.update_yaxes(type="category", range=[-0.7, count - 0.3])


def _shades(rows: Sequence[Row]) -> list[str]:
    """Returns the colour of every row's Δm: grey if the baseline is at the floor, since Δm then supports no claim."""
    return [UNCERTAIN if row.unfounded or not row.margin else shade(row.margin.estimate) for row in rows]


def _half(found: Estimate | None) -> float:
    return 0.0 if found is None or found.high is None else found.high - found.mean


def _colours() -> str:
    return "Blue and orange mark differences whose interval excludes 0; grey ones may be noise or stand at the floor."
