"""The regime that agents chose, serial or parallel, against the cost of a further pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mtlbench.report.figures.style import COLOURS, describe, safe, style
from mtlbench.report.reader import ReportInput, read_summary
from mtlbench.report.tables.records import by_label

TITLE = "Regime chosen against the cost of a pass"

Found = Mapping[str, list[dict[str, Any]]]


def read_regimes(study: ReportInput) -> Found:
    """Returns what agents recorded in their summaries, one entry per seed, by row in ascending order of cost."""
    found: dict[str, list[dict[str, Any]]] = {}
    for label, entries in by_label(study.plan["rows"]).items():
        runs = [next(iter(e["serving"].values())) for e in entries if len(set(e["serving"].values())) == 1]
        if records := [r for run in runs if (r := read_summary(study, run).get("regimes")) and r["chosen"]]:
            found[label] = records
    return dict(sorted(found.items(), key=lambda item: item[1][0]["cost"]))


def regime_figures(found: Found) -> dict[str, go.Figure]:
    """Plots the share of serial intervals and the utility of each regime over c; nothing where no agent chose."""
    if not found:
        return {}
    figure = make_subplots(1, 2, horizontal_spacing=0.12)
    costs = [records[0]["cost"] for records in found.values()]
    shares = [_mean([_mean(r["chosen"]) for r in records]) for records in found.values()]
    ends = [sum(r["serial"] for r in records) for records in found.values()]
    told = [
        f"{safe(label)}: {end} of {len(records)} seeds end in the serial regime"
        for (label, records), end in zip(found.items(), ends, strict=True)
    ]
    figure.add_scatter(
        x=costs,
        y=shares,
        mode="lines+markers",
        name="serial intervals",
        line={"color": COLOURS[0]},
        hovertext=told,
        hovertemplate="%{hovertext}<br>c = %{x:g}: %{y:.0%} of the intervals are serial<extra></extra>",
        row=1,
        col=1,
    )
    for number, regime in enumerate(("serial", "parallel")):
        figure.add_scatter(
            x=costs,
            y=[_mean([r["utility"][regime] for r in records]) for records in found.values()],
            mode="lines+markers",
            name=f"utility of the {regime} regime",
            line={"color": COLOURS[1 + number]},
            row=1,
            col=2,
        )
    figure.update_xaxes(title_text="cost c of a further pass")
    figure.update_yaxes(title_text="share of serial intervals", range=[-0.03, 1.03], row=1, col=1)
    figure.update_yaxes(title_text="utility at the end of training", row=1, col=2)
    caption = "Mean over seeds, one point per row. Utility: the sum over tasks of the accuracy in training, less "
    return {TITLE: describe(style(figure, 420), caption + "c for every pass after the first.")}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
