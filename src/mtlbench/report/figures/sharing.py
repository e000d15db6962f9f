"""Accuracy against computation and storage of methods that share computation, as a figure and a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mtlbench.metrics.relative import delta_m
from mtlbench.report.figures.style import COLOURS, safe, style
from mtlbench.report.model import Column, Leaderboard
from mtlbench.report.reader import ReportInput, read_summary
from mtlbench.report.statistics import Estimate, estimate
from mtlbench.report.tables.records import by_label, score_of

Record = Mapping[str, Any]

TITLE = "Δm against computation and storage"


@dataclass(frozen=True)
class Point:
    """One row at one threshold, over seeds.

    Attributes:
        delta: Δm in %.
        flops: Of a forward pass of one image for all tasks, two per multiply-add; None where a run has none on record.
        parameters: Stored for all tasks, in numbers of 32 bits, indices of sparse changes included.
        threshold: θ; None for a row that shares nothing.
        own: Whether it is what the leaderboard shows.
    """

    delta: Estimate
    flops: float | None
    parameters: float
    threshold: float | None = None
    own: bool = True


def read_sharing(study: ReportInput, board: Leaderboard) -> dict[str, list[Point]]:
    """Returns the points of every row that has Δm, by label; nothing where no row shares computation."""
    columns = [column for column in board.columns if column.in_delta_m]
    entries = by_label(study.plan["rows"])
    complete = [row.label for row in board.rows if row.delta and not row.floor]
    if board.baseline not in complete:
        return {}
    reference = {
        entry["seed"]: {
            c.task: score_of(study.results[entry["serving"][c.task]], c, study.plan["split"]) or 0.0 for c in columns
        }
        for entry in entries[board.baseline]
    }
    found = {label: _points(study, columns, entries[label], reference) for label in complete}
    found = {label: points for label, points in found.items() if points}  # A record may hold an empty curve.
    return found if any(len(points) > 1 or points[0].threshold is not None for points in found.values()) else {}


def sharing_json(points: Mapping[str, Sequence[Point]]) -> str:
    """Returns all points as JSON: label -> list."""
    return json.dumps({label: [asdict(p) for p in line] for label, line in points.items()}, indent=1) + "\n"


def sharing_figures(points: Mapping[str, Sequence[Point]]) -> dict[str, go.Figure]:
    """Returns Δm over FLOPs and over stored parameters, a line over thresholds where there are several, by title."""
    if not points:
        return {}
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04)
    for i, (label, line) in enumerate(points.items()):
        known = [(p, p.flops / 1e6) for p in line if p.flops is not None]
        stored = [(p, p.parameters / 1e6) for p in line if p.own]
        if known:
            _draw(figure, label, known, COLOURS[i % len(COLOURS)], column=1, listed=True)
        _draw(figure, label, stored, COLOURS[i % len(COLOURS)], column=2, listed=not known)
    figure.update_xaxes(
        title_text="MFLOPs per image, all tasks (counted, not measured)", rangemode="tozero", row=1, col=1
    )
    figure.update_xaxes(title_text="stored parameters in millions, all tasks", rangemode="tozero", row=1, col=2)
    figure.update_yaxes(title_text="Δm in %", row=1, col=1)
    unknown = [label for label, line in points.items() if any(p.flops is None for p in line)]
    title = f"{TITLE} (no FLOPs on record: {', '.join(unknown)})" if unknown else TITLE
    return {title: style(figure, 460)}


def _points(
    study: ReportInput,
    columns: Sequence[Column],
    entries: Sequence[Record],
    reference: Mapping[int, Mapping[str, float]],
) -> list[Point]:
    """Returns one point per threshold, or one in all, of a row whose runs are all done."""
    shared = {run: read_summary(study, run).get("sharing") for e in entries for run in e["serving"].values()}
    curves = {run: sharing for run, sharing in shared.items() if sharing}
    base = {c.task: estimate(reference[e["seed"]][c.task] for e in entries).mean for c in columns}
    if not curves:
        return [_point(study, columns, entries, base, {}, None, own=True)]
    first = next(iter(curves.values()))
    thresholds = [point["threshold"] for point in first["curves"]["scores"]]
    return [
        _point(
            study,
            columns,
            entries,
            base,
            {run: (sharing, sharing["curves"]["scores"][i]) for run, sharing in curves.items()},
            threshold,
            own=threshold == first["threshold"],
        )
        for i, threshold in enumerate(thresholds)
    ]


def _point(
    study: ReportInput,
    columns: Sequence[Column],
    entries: Sequence[Record],
    base: Mapping[str, float],
    curves: Mapping[str, tuple[Record, Record]],
    threshold: float | None,
    *,
    own: bool,
) -> Point:
    deltas: list[float] = []
    flops: list[float | None] = []
    parameters: list[float] = []
    up = {c.task: c.higher_is_better for c in columns}
    for entry in entries:
        scores = {c.task: _score(study, c, entry["serving"][c.task], curves) for c in columns}
        deltas.append(delta_m(scores, base, up))
        runs = dict.fromkeys(entry["serving"].values())
        costs = {run: study.results[run].get("cost") or {} for run in runs}
        flops += [curves[run][1]["flops"] if run in curves else costs[run].get("flops") for run in runs]
        parameters.append(
            sum(curves[r][0]["storage"]["parameters"] if r in curves else costs[r].get("parameters", 0) for r in runs)
        )
    known = [f for f in flops if f is not None]
    mean = sum(known) / len(entries) if len(known) == len(flops) else None
    return Point(estimate(deltas), mean, sum(parameters) / len(parameters), threshold, own)


def _score(study: ReportInput, column: Column, run: str, curves: Mapping[str, tuple[Record, Record]]) -> float:
    """Returns the score of a run, at the point of its curve if it has one."""
    if run in curves:
        return float(curves[run][1]["scores"][column.task][column.protocol])
    return score_of(study.results[run], column, study.plan["split"]) or 0.0


def _draw(
    figure: go.Figure, label: str, line: Sequence[tuple[Point, float]], colour: str, *, column: int, listed: bool
) -> None:
    """Draws Δm over a cost in millions."""
    half = [p.delta.high - p.delta.mean if p.delta.high is not None else 0 for p, _ in line]
    told = [f"θ = {p.threshold:g}, " if p.threshold is not None else "" for p, _ in line]
    figure.add_scatter(
        x=[cost for _, cost in line],
        y=[p.delta.mean for p, _ in line],
        name=safe(label),
        legendgroup=label,
        mode="lines+markers" if len(line) > 1 else "markers",
        line={"color": colour, "width": 1.8},
        marker={"color": colour, "size": [11 if p.own else 6 for p, _ in line]},
        showlegend=listed,
        error_y={"array": half, "thickness": 1.2, "width": 3},
        customdata=[[text, p.delta.n] for text, (p, _) in zip(told, line, strict=True)],
        hovertemplate=f"{safe(label)}<br>%{{customdata[0]}}%{{x:.4g}} million<br>Δm %{{y:+.2f}} %, "
        "n = %{customdata[1]}<extra></extra>",
        row=1,
        col=column,
    )
