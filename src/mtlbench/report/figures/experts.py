"""Expert usage per task, read from the runs' ``summary.json``, as figures and as a JSON file."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.figure_factory as ff
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mtlbench.report.figures.series import Series
from mtlbench.report.figures.style import COLOURS, safe, style
from mtlbench.report.reader import ReportInput, read_summary

Table = np.ndarray
"""(T, E) of one layer."""

_SAME = 1e-3
"""Tasks whose usage differs by less than this share their experts, and have no tree."""

DEPTH = [[0, "rgba(128,128,128,0.06)"], [1, "rgba(76,120,168,1)"]]


@dataclass(frozen=True)
class Usage:
    """Expert usage of one label. Tables are those of the first seed, since experts have no common order across seeds.

    Attributes:
        tasks: T names.
        probability: P(E | t) by name of the layer.
        load: Shares of choices by name of the layer.
        similarity: (T, T), cosine between the tasks' loads of all layers, mean over seeds.
        seeds: How many.
    """

    tasks: list[str]
    probability: dict[str, Table]
    load: dict[str, Table]
    similarity: Table
    seeds: int


def read_usage(study: ReportInput) -> dict[str, Usage]:
    """Reads the expert usage of every label (and condition, if there are several) that recorded it."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in study.plan["rows"]:
        for run in dict.fromkeys(entry["serving"].values()):
            experts = read_summary(study, run).get("experts")
            if experts:
                # Conditions are kept apart: their tasks may differ.
                found[", ".join([entry["label"], *filter(None, [entry.get("condition")])])].append(experts)
    return {label: _usage(records) for label, records in found.items()}


def usage_json(usages: Mapping[str, Usage]) -> str:
    """Returns all tables as JSON: label -> tasks, layers, similarity."""
    record = {
        label: {
            "tasks": usage.tasks,
            "seeds": usage.seeds,
            "similarity": usage.similarity.round(4).tolist(),
            "layers": {
                name: {"probability": usage.probability[name].tolist(), "load": usage.load[name].tolist()}
                for name in usage.load
            },
        }
        for label, usage in usages.items()
    }
    return json.dumps(record, indent=1) + "\n"


def usage_figures(usages: Mapping[str, Usage], series: Mapping[str, Mapping[str, Series]]) -> dict[str, go.Figure]:
    """Returns every figure about experts with data, by title."""
    found: dict[str, go.Figure] = {}
    for label, usage in usages.items():
        found[f"{label}: expert usage per task"] = heat_maps(usage)
        if len(usage.tasks) > 2 and usage.similarity.min() < 1 - _SAME:
            found[f"{label}: task clustering by expert usage"] = tree(usage)
        if loads := load_over_time(series.get(label, {})):
            found[f"{label}: expert load over training"] = loads
    if similar := similarity(usages):
        found = {"Task similarity by expert usage": similar, **found}
    if information := information_over_time(series):
        found["Mutual information between tasks and experts over training"] = information
    return found


def heat_maps(usage: Usage) -> go.Figure:
    """Plots one map per layer, tasks by experts; experts are sorted by the task that uses them most."""
    wide = min(4, len(usage.load))
    high = math.ceil(len(usage.load) / wide)
    figure = make_subplots(high, wide, subplot_titles=[safe(n) for n in usage.load], shared_yaxes=True)
    for place, table in enumerate(usage.load.values()):
        order = np.lexsort((-table.max(0), table.argmax(0)))
        figure.add_heatmap(
            z=table[:, order],
            x=[f"e{e}" for e in order],
            y=[safe(t) for t in usage.tasks],
            coloraxis="coloraxis",
            hovertemplate="%{y} sends %{z:.1%} of its choices to %{x}<extra></extra>",
            row=place // wide + 1,
            col=place % wide + 1,
        )
    figure.update_layout(coloraxis={"colorscale": DEPTH, "cmin": 0, "colorbar": {"thickness": 12}})
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(showticklabels=False)
    return style(figure, 110 + (70 + 22 * len(usage.tasks)) * high, legend=False)


def similarity(usages: Mapping[str, Usage]) -> go.Figure | None:
    """Plots the similarity of tasks, one matrix per label."""
    if not usages:
        return None
    wide = min(3, len(usages))
    high = math.ceil(len(usages) / wide)
    figure = make_subplots(high, wide, subplot_titles=[safe(x) for x in usages], horizontal_spacing=0.09)
    for place, usage in enumerate(usages.values()):
        names = [safe(t) for t in usage.tasks]
        figure.add_heatmap(
            z=usage.similarity,
            x=names,
            y=names,
            texttemplate="%{z:.2f}",
            coloraxis="coloraxis",
            hovertemplate="%{x} and %{y}: %{z:.3f}<extra></extra>",
            row=place // wide + 1,
            col=place % wide + 1,
        )
    figure.update_layout(coloraxis={"colorscale": DEPTH, "cmin": 0, "cmax": 1, "colorbar": {"thickness": 12}})
    figure.update_yaxes(autorange="reversed")
    return style(figure, 110 + 300 * high, legend=False)


def tree(usage: Usage) -> go.Figure:
    """Plots the dendrogram of tasks (average linkage of 1 − similarity)."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    distance = np.clip(1 - usage.similarity, 0, None)
    np.fill_diagonal(distance, 0)
    condensed = squareform((distance + distance.T) / 2, checks=False)
    figure = ff.create_dendrogram(
        distance,
        labels=[safe(t) for t in usage.tasks],
        orientation="left",
        colorscale=[COLOURS[0]] * 8,
        distfun=lambda _: condensed,
        linkagefun=lambda x: linkage(x, "average"),
    )
    figure.update_xaxes(title_text="1 − cosine similarity of expert usage")
    # `create_dendrogram` fixes a width that is narrower than the page.
    figure.layout.width, figure.layout.autosize = None, True
    return style(figure, 130 + 26 * len(usage.tasks), legend=False)


def load_over_time(quantities: Mapping[str, Series]) -> go.Figure | None:
    """Plots the load share of every expert over steps, one panel per layer; a starved expert lies at 0."""
    layers: dict[str, list[Series]] = defaultdict(list)
    for name, s in quantities.items():
        if name.startswith("experts/") and "/load/" in name:
            layers[name.split("/")[1]].append(s)
    if not layers:
        return None
    wide = min(4, len(layers))
    high = math.ceil(len(layers) / wide)
    figure = make_subplots(high, wide, subplot_titles=[safe(n) for n in layers], shared_yaxes=True)
    for place, (_, lines) in enumerate(layers.items()):
        for expert, s in enumerate(lines):
            figure.add_scatter(
                x=s.steps,
                y=s.mean,
                mode="lines",
                line={"width": 1.2, "color": COLOURS[expert % len(COLOURS)]},
                hovertemplate=f"expert {expert}: %{{y:.1%}} at step %{{x}}<extra></extra>",
                showlegend=False,
                row=place // wide + 1,
                col=place % wide + 1,
            )
    figure.update_yaxes(rangemode="tozero", tickformat=".0%")
    return style(figure, 110 + 210 * high, legend=False)


def information_over_time(series: Mapping[str, Mapping[str, Series]]) -> go.Figure | None:
    """Plots I(T; E) in nats over steps, mean over layers, one line per label."""
    figure = go.Figure()
    for i, (label, quantities) in enumerate(series.items()):
        layers = [s for name, s in quantities.items() if name.endswith("/mutual_information")]
        if layers:
            values = np.mean([s.mean for s in layers], axis=0)
            figure.add_scatter(
                x=layers[0].steps,
                y=values,
                mode="lines",
                name=safe(label),
                line={"width": 1.8, "color": COLOURS[i % len(COLOURS)]},
            )
    if not figure.data:
        return None
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="I(task; expert) in nats", rangemode="tozero")
    return style(figure, 360)


def _usage(records: Sequence[Mapping[str, Any]]) -> Usage:
    first = records[0]["layers"]
    return Usage(
        list(records[0]["tasks"]),
        {name: np.array(layer["probability"]) for name, layer in first.items()},
        {name: np.array(layer["load"]) for name, layer in first.items()},
        np.mean([_cosines(record["layers"]) for record in records], axis=0),
        len(records),
    )


def _cosines(layers: Mapping[str, Any]) -> Table:
    rows = np.concatenate([np.array(layer["load"]) for layer in layers.values()], axis=1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms > 0, norms, 1)
    return unit @ unit.T
