"""Figures of computation sharing on video, as one HTML page that needs no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mtlbench.report.style import COLOURS, safe, style

Record = Mapping[str, Any]


def page(record: Record) -> str:
    """Returns the page of what ``mtlbench video`` measured."""
    parts = []
    for number, (title, figure) in enumerate(figures(record).items()):
        drawn = figure.to_html(full_html=False, include_plotlyjs=number == 0, config={"displayModeBar": False})
        parts.append(f"<h2>{safe(title)}</h2>\n{drawn}")
    name = f"{safe(record['suite'])}: computation sharing on video"
    about = (
        f"{record['clips']} clips of {record['clip_length']} frames, split {safe(record['split'])}, seed "
        f"{record['seed']}. Base task {safe(record['base'])}; between key frames the others are held to it in the "
        f"first {record['shared_blocks']} of {record['blocks']} blocks. FLOPs are counted by formula, not realised."
    )
    look = "body{font-family:system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    head = f'<!doctype html>\n<meta charset="utf-8">\n<title>{name}</title>\n<style>{look}</style>'
    return "\n".join([head, f"<h1>{name}</h1>", f"<p>{about}</p>", *parts]) + "\n"


def figures(record: Record) -> dict[str, go.Figure]:
    """Returns every figure by title."""
    shared = [point for point in record["points"] if point["threshold"] is not None]
    longest = max((point["distance"] for point in shared), default=1)
    far = [point for point in shared if point["distance"] == longest and len(point["lags"]) > 1]
    found = {"Accuracy against computation": accuracy(record, shared)}
    if far:
        found[f"Drift over frames since the key frame, key frames {longest} apart"] = drift(far)
        found[f"Scores over frames since the key frame, key frames {longest} apart"] = scores(record, far)
    return found


def accuracy(record: Record, shared: Sequence[Record]) -> go.Figure:
    """Returns Δm over FLOPs per frame: a line per distance of key frames, a point per threshold."""
    figure = go.Figure()
    for i, distance in enumerate(sorted({point["distance"] for point in shared})):
        line = [point for point in shared if point["distance"] == distance and point["delta_m"] is not None]
        figure.add_scatter(
            x=[_megaflops(point) for point in line], y=[point["delta_m"] for point in line], mode="lines+markers",
            name=f"key frame every {distance}" if distance > 1 else "every frame a key frame",
            line={"color": COLOURS[i % len(COLOURS)], "width": 1.8}, customdata=[[p["threshold"]] for p in line],
            hovertemplate="θ = %{customdata[0]:g}<br>%{x:.4g} MFLOPs<br>Δm %{y:+.2f} %<extra></extra>",
        )  # fmt: skip
    for i, point in enumerate(p for p in record["points"] if p["threshold"] is None and p["delta_m"] is not None):
        figure.add_scatter(
            x=[_megaflops(point)], y=[point["delta_m"]], mode="markers", name=safe(point["label"]),
            marker={"size": 11, "symbol": ("diamond", "square")[i % 2], "color": "#7f7f7f"},
            hovertemplate=f"{safe(point['label'])}<br>%{{x:.4g}} MFLOPs<br>Δm %{{y:+.2f}} %<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="MFLOPs per frame, all tasks", rangemode="tozero")
    figure.update_yaxes(title_text=f"Δm in % against {safe(record['baseline'])}")
    return style(figure, 460)


def drift(points: Sequence[Record]) -> go.Figure:
    """Returns the relative change of predictions by sharing, mean over tasks, over frames: a line per threshold."""
    figure = go.Figure()
    for i, point in enumerate(points):
        values = [sum(lag["drift"].values()) / len(lag["drift"]) for lag in point["lags"]]
        _line(figure, point, i, values, legend=True)
    figure.update_xaxes(title_text="frames since the key frame", dtick=1)
    figure.update_yaxes(title_text="relative change of predictions", rangemode="tozero")
    return style(figure, 420)


def scores(record: Record, points: Sequence[Record]) -> go.Figure:
    """Returns small multiples: every task's monitored score over frames since the key frame."""
    tasks = list(record["tasks"])
    wide = min(3, len(tasks))
    high = math.ceil(len(tasks) / wide)
    named = {task: next(iter(points[0]["lags"][0]["scores"][task])) for task in tasks}
    titles = [safe(f"{task}: {protocol}") for task, protocol in named.items()]
    figure = make_subplots(high, wide, subplot_titles=titles, vertical_spacing=0.14 / high + 0.05)
    for place, (task, protocol) in enumerate(named.items()):
        for i, point in enumerate(points):
            values = [lag["scores"][task][protocol] for lag in point["lags"]]
            _line(figure, point, i, values, legend=not place, row=place // wide + 1, col=place % wide + 1)
    figure.update_xaxes(dtick=1)
    return style(figure, 120 + 240 * high)


def _line(figure: go.Figure, point: Record, number: int, values: list[float], *, legend: bool, **place: int) -> None:
    name = f"θ = {point['threshold']:g}"
    figure.add_scatter(
        x=[lag["lag"] for lag in point["lags"]], y=values, mode="lines+markers", name=name, legendgroup=name,
        showlegend=legend, line={"color": COLOURS[number % len(COLOURS)], "width": 1.8}, **place,
        hovertemplate=f"{name}, frame %{{x}}: %{{y:.4g}}<extra></extra>",
    )  # fmt: skip


def _megaflops(point: Record) -> float:
    return sum(point["flops"].values()) / 1e6
