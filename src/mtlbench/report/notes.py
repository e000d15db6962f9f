"""The text around the table: what was compared and how (above), and how to read it (below)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtlbench.metrics.relative import PROTOCOL
from mtlbench.report.columns import column_notes, merged_costs
from mtlbench.report.model import Column, Row

SELECTED = {"last": "with the weights of the last step", "best": "with the weights that scored best on val"}
"""Which weights a run reports, by the suite's ``selection``."""


def rules(study: Mapping[str, Any], columns: Iterable[Column]) -> tuple[tuple[str, str], ...]:
    """Returns (name, text) settings of a study, from which readers see whether two tables are comparable."""
    entering = ", ".join(f"{c.task} ({c.protocol})" for c in columns if c.in_delta_m)
    lines = {
        "Suite": f"{study['suite']}, version {study.get('version', '?')}",
        "Scores": f"on the {study['split']} split, {SELECTED.get(study['selection'], study['selection'])}",
        "Tuning budget": study["search"],
        "Seeds": ", ".join(map(str, study["seeds"])),
        "Scenario": study["scenario"]["text"] if "scenario" in study else "",
        "Δm": ""
        if "scenario" in study
        else f"{PROTOCOL}: mean relative gain over {study['baseline']} with the same seeds in %, from {entering}",
        "Encoder": "; ".join(study.get("encoders", [])),
        "Data": study.get("data", ""),
        "Removed tasks": "; ".join(f"{r['task']} ({r['reason']})" for r in study.get("removed", [])),
        "Overrides": ", ".join(study.get("overrides", [])),
        "Code": _code(study),
        "Created": study.get("created", ""),
    }
    return tuple((word, str(text)) for word, text in lines.items() if text)


def notes(rows: Iterable[Row], named: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the footnotes of the leaderboard; some apply only to certain rows."""
    every = list(rows)
    lines = [
        "Cells show the mean ± sample standard deviation over n seeds. Bold marks the best mean of a column.",
        "Intervals are 95 % t intervals over seeds. The interval of Δm treats the single-task mean as exact. "
        "Differences between rows are paired by seed.",
        "Rows are ranked by mean Δm. A row shares a rank if it does not differ significantly from the first row of "
        "that rank (paired t test, p < 0.05). A row with a missing cell has neither a rank nor Δm.",
    ]
    if named:
        lines.append(f"* Pre-registered comparison: {named[0]} against {named[1]}. Its p-value is not corrected.")
    if any(r.delta and r.delta.n == 1 for r in every):
        lines.append(
            "With one seed, noise cannot be estimated: there is no interval, and rows are ranked by value alone."
        )
    if any(r.cost and r.cost.runs > 1 for r in every):
        lines.append(f"Costs of a row with several runs: {merged_costs()}.")
    devices = sorted({device for r in every if r.cost for device in r.cost.devices.split(", ")})
    if devices:
        lines.append(f"Costs were measured on: {'; '.join(devices)}.")
    hints = dict.fromkeys(r.hint for r in every if r.hint.startswith(("Δm", "no task")))
    lines += column_notes(every)
    return (*lines, *(f"Δm is blank: {hint}." for hint in hints))


def _code(study: Mapping[str, Any]) -> str:
    commit = study.get("commit")
    state = " with uncommitted changes" if study.get("dirty") else ""
    # An installed package has no commit: its version says which code ran.
    where = f", commit {commit}{state}" if commit else ""
    return f"mtlbench {study.get('package', '?')}{where}"
