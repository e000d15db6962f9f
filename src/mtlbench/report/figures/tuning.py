"""The trials of equal tuning: their scores by method, with the declared and the chosen values marked."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from mtlbench.report.figures.style import COLOURS, UNCERTAIN, safe, style
from mtlbench.report.tuning import Tuning, TuningTrial

TITLE = "Trials of the search by method"

_LOOKS = (
    ("tried", "circle", UNCERTAIN, 7),
    ("declared values", "diamond", COLOURS[0], 9),
    ("chosen", "star", COLOURS[1], 13),
)


def tuning_figures(tunings: Sequence[Tuning]) -> dict[str, go.Figure]:
    """Plots the validation gain of every trial; empty without a search."""
    figure = go.Figure()
    for name, symbol, colour, size in _LOOKS:
        points = [(t.label, trial) for t in tunings for trial in _kind(t, name) if trial.score is not None]
        figure.add_scatter(
            x=[safe(label) for label, _ in points],
            y=[trial.score for _, trial in points],
            mode="markers",
            name=name,
            marker={"symbol": symbol, "color": colour, "size": size},
            hovertext=[safe(_described(trial)) for _, trial in points],
            hovertemplate="%{x}, %{hovertext}<br>%{y:+.2f} %<extra></extra>",
        )
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=[safe(t.label) for t in tunings])
    figure.update_yaxes(title_text="gain on validation in %")
    return {TITLE: style(figure, 420)} if tunings else {}


def _kind(tuning: Tuning, name: str) -> Sequence[TuningTrial]:
    if name == "chosen":
        return [trial for trial in [tuning.best] if trial]
    if name == "tried":
        return [trial for trial in tuning.full if trial.number]
    return [trial for trial in [tuning.declared] if trial]


def _described(trial: TuningTrial) -> str:
    values = ", ".join(f"{key} {value}" for key, value in trial.values.items())
    return f"trial {trial.number}: {values}"
