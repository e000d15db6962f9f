"""Figures of computation sharing on video, as one HTML page that works offline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mtlbench.report.figures.style import COLOURS, safe, style
from mtlbench.report.statistics import Estimate, estimate

Record = Mapping[str, Any]


def page(record: Record) -> str:
    """Returns the page of what ``mtlbench video`` measured."""
    parts = []
    for number, (title, figure) in enumerate(figures(record).items()):
        drawn = figure.to_html(full_html=False, include_plotlyjs=number == 0, config={"displayModeBar": False})
        parts.append(f"<h2>{safe(title)}</h2>\n{drawn}")
    name = f"{safe(record['suite'])}: computation sharing on video"
    about = (
        f"Row {safe(record['label'])}, {record['clips']} clips of {record['clip_length']} frames, split "
        f"{safe(record['split'])}, seeds {', '.join(map(str, record['seeds']))}: means, and 95 % intervals where there "
        f"are several. Base task {safe(record['base'])}; between key frames the others are held to it in the first "
        f"{record['shared_blocks']} of {record['blocks']} blocks. FLOPs are counted by formula, not realised."
    )
    look = "body{font-family:system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    head = f'<!doctype html>\n<meta charset="utf-8">\n<title>{name}</title>\n<style>{look}</style>'
    return "\n".join([head, f"<h1>{name}</h1>", f"<p>{about}</p>", *parts]) + "\n"


def gain(point: Record) -> Estimate | None:
    """Returns Δm in per cent over seeds; None where the baseline has a score of 0."""
    values = [found["delta_m"] for found in point["seeds"]]
    return None if None in values else estimate(values)


def flops(point: Record) -> float:
    """Returns the FLOPs per frame of all tasks, mean over seeds."""
    return _mean(sum(found["flops"].values()) for found in point["seeds"])


def drifts(point: Record) -> list[float]:
    """Returns the relative change of predictions by frames since the key frame, mean over tasks and seeds."""
    return [_mean(value for lag in lags for value in lag["drift"].values()) for lags in _lags(point)]


def figures(record: Record) -> dict[str, go.Figure]:
    """Returns every figure by title."""
    shared = [point for point in record["points"] if point["threshold"] is not None]
    longest = max((point["distance"] for point in shared), default=1)
    far = [point for point in shared if point["distance"] == longest and len(_lags(point)) > 1]
    found = {"Accuracy against computation": accuracy(record, shared)}
    if far:
        found[f"Drift over frames since the key frame, key frames {longest} apart"] = drift(far)
        found[f"Scores over frames since the key frame, key frames {longest} apart"] = scores(record, far)
    return found


def accuracy(record: Record, shared: Sequence[Record]) -> go.Figure:
    """Returns Δm over FLOPs per frame: a line per distance of key frames, a point per threshold."""
    figure = go.Figure()
    for i, distance in enumerate(sorted({point["distance"] for point in shared})):
        line = [point for point in shared if point["distance"] == distance]
        name = f"key frame every {distance}" if distance > 1 else "every frame a key frame"
        marks = {"mode": "lines+markers", "line": {"color": COLOURS[i % len(COLOURS)], "width": 1.8}}
        _gains(figure, name, line, **marks)
    for i, point in enumerate(p for p in record["points"] if p["threshold"] is None):
        marker = {"size": 11, "symbol": ("diamond", "square")[i % 2], "color": "#7f7f7f"}
        _gains(figure, safe(point["label"]), [point], mode="markers", marker=marker)
    figure.update_xaxes(title_text="MFLOPs per frame, all tasks", rangemode="tozero")
    figure.update_yaxes(title_text=f"Δm in % against {safe(record['baseline'])}")
    return style(figure, 460)


def drift(points: Sequence[Record]) -> go.Figure:
    """Returns the relative change of predictions by sharing, mean over tasks, over frames: a line per threshold."""
    figure = go.Figure()
    for i, point in enumerate(points):
        _line(figure, point, i, drifts(point), legend=True)
    figure.update_xaxes(title_text="frames since the key frame", dtick=1)
    figure.update_yaxes(title_text="relative change of predictions", rangemode="tozero")
    return style(figure, 420)


def scores(record: Record, points: Sequence[Record]) -> go.Figure:
    """Returns small multiples: every task's monitored score over frames since the key frame."""
    tasks = list(record["tasks"])
    wide = min(3, len(tasks))
    high = math.ceil(len(tasks) / wide)
    named = {task: record["monitors"][task]["protocol"] for task in tasks}
    arrows = {task: "↑" if record["monitors"][task]["higher_is_better"] else "↓" for task in tasks}
    titles = [safe(f"{task}: {protocol} {arrows[task]}") for task, protocol in named.items()]
    figure = make_subplots(high, wide, subplot_titles=titles, vertical_spacing=0.14 / high + 0.05)
    for place, (task, protocol) in enumerate(named.items()):
        for i, point in enumerate(points):
            values = [_mean(lag["scores"][task][protocol] for lag in lags) for lags in _lags(point)]
            _line(figure, point, i, values, legend=not place, row=place // wide + 1, col=place % wide + 1)
    figure.update_xaxes(dtick=1)
    return style(figure, 120 + 240 * high)


def _gains(figure: go.Figure, name: str, points: Sequence[Record], **marks: Any) -> None:
    known = [(point, found) for point in points if (found := gain(point))]
    told = [f"θ = {p['threshold']:g}<br>" if p["threshold"] is not None else "" for p, _ in known]
    figure.add_scatter(
        x=[flops(point) / 1e6 for point, _ in known],
        y=[found.mean for _, found in known],
        name=name,
        customdata=told,
        error_y={"array": [0 if e.high is None else e.high - e.mean for _, e in known], "thickness": 1, "width": 3},
        hovertemplate=f"{name}<br>%{{customdata}}%{{x:.4g}} MFLOPs<br>Δm %{{y:+.2f}} %<extra></extra>",
        **marks,
    )


def _line(figure: go.Figure, point: Record, number: int, values: list[float], *, legend: bool, **place: int) -> None:
    name = f"θ = {point['threshold']:g}"
    figure.add_scatter(
        x=[lags[0]["lag"] for lags in _lags(point)],
        y=values,
        mode="lines+markers",
        name=name,
        legendgroup=name,
        showlegend=legend,
        line={"color": COLOURS[number % len(COLOURS)], "width": 1.8},
        **place,
        hovertemplate=f"{name}, frame %{{x}}: %{{y:.4g}}<extra></extra>",
    )


def _lags(point: Record) -> list[tuple[Record, ...]]:
    """Returns what every seed found, by frames since the key frame."""
    return list(zip(*(found["lags"] for found in point["seeds"]), strict=True))


def _mean(values: Iterable[float]) -> float:
    return estimate(values).mean
