"""The lines above the table (what was compared, and how) and beneath it (how to read it)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtlbench.metrics.relative import PROTOCOL
from mtlbench.report.columns import column_notes
from mtlbench.report.model import Column, Row


def rules(study: Mapping[str, Any], columns: Iterable[Column]) -> tuple[tuple[str, str], ...]:
    """Returns (word, text) lines that make two tables comparable, or show why they are not."""
    entering = ", ".join(f"{c.task} ({c.protocol})" for c in columns if c.in_delta_m)
    lines = {
        "Suite": f"{study['suite']}, version {study.get('version', '?')}",
        "Scores": f"on the {study['split']} split; weights chosen by: {study['selection']}",
        "Tuning budget": study["search"],
        "Seeds": ", ".join(map(str, study["seeds"])),
        "Scenario": study["scenario"]["text"] if "scenario" in study else "",
        "Δm": ""
        if "scenario" in study
        else f"{PROTOCOL} in %, higher is better, against {study['baseline']} on the same seeds, from {entering}",
        "Encoder": "; ".join(study.get("encoders", [])),
        "Data": study.get("data", ""),
        "Removed tasks": "; ".join(f"{r['task']} ({r['reason']})" for r in study.get("removed", [])),
        "Overrides": ", ".join(study.get("overrides", [])),
        "Code": _code(study),
        "Planned": study.get("created", ""),
    }
    return tuple((word, str(text)) for word, text in lines.items() if text)


def notes(rows: Iterable[Row], named: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns how to read the table, with what holds for these rows only."""
    every = list(rows)
    lines = [
        "Cells: mean ± sample standard deviation over seeds (n as shown); bold: best mean of its column.",
        "Intervals: 95 % t interval over seeds. That of Δm takes the single-task mean as given; differences between "
        "rows are paired by seed.",
        "Rank: by mean Δm. A row shares the rank above it unless its difference to the first row of that rank, paired "
        "by seed, is significant (t test, p < 0.05). A row with a missing cell has neither rank nor Δm.",
    ]
    if named:
        lines.append(f"* The suite named one comparison beforehand, {named[0]} against {named[1]}: its p stands alone.")
    if any(r.delta and r.delta.n == 1 for r in every):
        lines.append("n = 1: there is no measure of noise, so no interval; rows are ranked by value alone.")
    if any(r.cost and r.cost.runs > 1 for r in every):
        lines.append(
            "Cost of a row with several runs: seconds per step and parameters are summed, memory is the largest."
        )
    devices = sorted({device for r in every if r.cost for device in r.cost.devices.split(", ")})
    if devices:
        lines.append(f"Cost was measured on: {'; '.join(devices)}.")
    hints = dict.fromkeys(r.hint for r in every if r.hint.startswith(("Δm", "no task")))
    lines += column_notes(every)
    return (*lines, *(f"Blank Δm: {hint}." for hint in hints))


def _code(study: Mapping[str, Any]) -> str:
    commit = study.get("commit")
    state = " with uncommitted changes" if study.get("dirty") else ""
    # An installed package has no commit: its version says which code ran.
    where = f", commit {commit}{state}" if commit else ""
    return f"mtlbench {study.get('package', '?')}{where}"
