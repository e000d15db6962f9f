"""Evolution of paths: what the paths of all tasks store together, and which child came from which parent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from mtlbench.report.figures.style import COLOURS, UNCERTAIN, describe, line, safe, style
from mtlbench.report.tables.records import by_label

Record = Mapping[str, Any]

GROWTH = "Parameters stored for all tasks, as tasks are introduced"


def evolution_figures(study: Record) -> dict[str, go.Figure]:
    """Returns the growth of all rows whose plans evolved paths, and the lineage of each, by title.

    Args:
        study: Content of ``study.json``.
    """
    entries = [e for e in study["rows"] if (e.get("record") or {}).get("kind") == "evolution"]
    rows = {
        label: [e["record"] for e in found if e["record"]["growth"] and e["record"]["lineage"]]
        for label, found in by_label(entries).items()
    }
    rows = {label: records for label, records in rows.items() if records}
    seeds = {e["label"]: e["seed"] for e in reversed(entries)}
    lineages = {f"Lineage of {label}, seed {seeds[label]}": lineage(records[0]) for label, records in rows.items()}
    return {GROWTH: growth(rows), **lineages} if rows else {}


def growth(rows: Mapping[str, Sequence[Record]]) -> go.Figure:
    """Plots stored parameters over the tasks so far, one line per row (mean over seeds), and that without sharing."""
    figure = go.Figure()
    for number, (label, records) in enumerate(rows.items()):
        steps = list(zip(*(record["growth"] for record in records), strict=False))
        tasks = [[f"{i}: {safe(step[0]['task'])}" for i, step in enumerate(steps, 1)]]
        figure.add_scatter(
            x=list(range(1, len(steps) + 1)),
            y=[sum(each["parameters"] for each in step) / len(step) / 1e6 for step in steps],
            customdata=[[text] for text in tasks[0]],
            name=safe(label),
            mode="lines+markers",
            line=line(number),
            hovertemplate=f"{safe(label)}<br>%{{customdata[0]}}<br>%{{y:.4g}} million<extra></extra>",
        )
    longest = max((record for records in rows.values() for record in records), key=lambda r: len(r["growth"]))
    counts = list(range(1, len(longest["growth"]) + 1))
    figure.add_scatter(
        x=counts,
        y=[count * longest["whole"] / 1e6 for count in counts],
        name="a network per task",
        mode="lines",
        line={"color": UNCERTAIN, "dash": "dash"},
        hoverinfo="skip",
    )
    figure.update_xaxes(title_text="tasks introduced", dtick=1)
    figure.update_yaxes(title_text="parameters in millions", rangemode="tozero")
    caption = "A component that several tasks share counts once. Mean over seeds."
    return describe(style(figure, 380), caption)


def lineage(record: Record) -> go.Figure:
    """Plots every child below its parent, one column per generation, one colour per task; a star marks what is kept."""
    entries = record["lineage"]
    columns = list(dict.fromkeys((e["task"], e["generation"]) for e in entries))
    places: dict[str, tuple[int, int]] = {"": (0, 0)}
    for entry in entries:
        column = columns.index((entry["task"], entry["generation"])) + 1
        places[entry["run"]] = (column, sum(at == column for at, _ in places.values()))
    figure = go.Figure()
    ends = [point for e in entries for point in (*_edge(e, places), (None, None))]
    figure.add_scatter(
        x=[x for x, _ in ends],
        y=[y for _, y in ends],
        mode="lines",
        line={"color": UNCERTAIN, "width": 0.8},
        hoverinfo="skip",
        showlegend=False,
    )
    for number, task in enumerate(dict.fromkeys(e["task"] for e in entries)):
        own = [e for e in entries if e["task"] == task]
        figure.add_scatter(
            x=[places[e["run"]][0] for e in own],
            y=[places[e["run"]][1] for e in own],
            mode="markers",
            name=safe(task),
            marker={
                "color": COLOURS[number % len(COLOURS)],
                "symbol": ["star" if e.get("kept") else "circle" for e in own],
                "size": [15 if e.get("kept") else 8 for e in own],
            },
            hovertext=[safe(told(e)) for e in own],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    # Colours name the tasks; with their names the ticks would run into the legend.
    numbers = [str(generation + 1) for _, generation in columns]
    figure.update_xaxes(
        title_text="generation of each task", tickvals=list(range(len(numbers) + 1)), ticktext=["initial", *numbers]
    )
    figure.update_yaxes(title_text="child", dtick=1, autorange="reversed")
    note = record.get("note") or ""
    return describe(style(figure, 420), f"A star marks the path that is kept for its task. {note}".strip())


def _edge(entry: Record, places: Mapping[str, tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yields both ends of the line from a parent; none if the record does not hold the parent."""
    if entry["parent"] in places:
        yield places[entry["parent"]]
        yield places[entry["run"]]


def told(entry: Record) -> str:
    """Describes a child in words."""
    trained = ", ".join(entry["trained"]) or "none"
    hyper = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in entry["hyper"].items()
    )
    score = "-" if entry.get("score") is None else f"{entry['score']:.4g}"
    return f"{entry['run']}: score {score}; trained besides the head: {trained}; {hyper}"
