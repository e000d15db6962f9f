"""The text around the table: what was compared and how (above), and how to read it (below)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mtlbench.metrics.relative import PROTOCOL
from mtlbench.report.columns import column_notes, kind_of_time
from mtlbench.report.model import Column, NamedPair, Resolution, Row

SELECTED = {"last": "with the weights of the last step", "best": "with the weights that scored best on val"}
"""Which weights a run reports, by the suite's ``selection``."""


def rules(
    study: Mapping[str, Any], columns: Iterable[Column], named: NamedPair | None = None
) -> tuple[tuple[str, str], ...]:
    """Returns (name, text) settings of a study, from which readers see whether two tables are comparable."""
    entering = ", ".join(f"{c.task} ({c.protocol})" for c in columns if c.in_delta_m)
    lines = {
        "Suite": f"{study['suite']}, version {study.get('version', '?')}",
        "Scores": f"on the {study['split']} split, {SELECTED.get(study['selection'], study['selection'])}",
        "Tuning": study["search"],
        "Training budget": _budget(study.get("budget")),
        "Seeds": ", ".join(map(str, study["seeds"])),
        "Seeds set apart": study.get("set_apart", ""),
        "Named comparison": named.about if named else "",
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


def notes(rows: Iterable[Row], named: NamedPair | None, against: str, resolution: Resolution | None) -> tuple[str, ...]:
    """Returns the footnotes of the leaderboard; some apply only to certain rows."""
    every = list(rows)
    lines = [
        "Cells show the mean ± sample standard deviation over n seeds. Bold marks the best mean of a column.",
        f"Intervals are 95 % t intervals of the difference in Δm from {against}, paired by seed.",
        "Rows are ranked by mean Δm. A row shares a rank if it does not differ significantly from the first row of "
        "that rank (paired t test, Holm correction over all rows below it, p < 0.05). A row with a missing cell has "
        "neither a rank nor Δm.",
    ]
    if resolution:
        lines.append(_resolution(resolution))
    if named:
        lines += _pre_registered(named)
    if any(r.delta and r.delta.n == 2 for r in every):
        lines.append("Two seeds hardly measure noise: intervals are very wide, and a narrow one may be luck.")
    if any(r.delta and r.delta.n == 1 for r in every):
        lines.append(
            "With one seed, noise cannot be estimated: there is no interval, and rows are ranked by value alone."
        )
    devices = sorted({device for r in every if r.cost for device in r.cost.devices.split(", ")})
    if devices:
        lines.append(f"Costs were measured on: {'; '.join(devices)}.")
    if told := kind_of_time(every):
        lines.append(told)
    hints = dict.fromkeys(r.hint for r in every if r.hint.startswith(("Δm", "no task")))
    lines += column_notes(every)
    return (*lines, *(f"Δm is blank: {hint}." for hint in hints))


def _resolution(found: Resolution) -> str:
    more = f"; {found.seeds} seeds would show 1 point" if found.seeds and found.seeds > found.n else ""
    return (
        f"With {found.n} seeds, differences in Δm from {found.reference} of less than {found.detectable:.1f} points "
        "cannot be distinguished from noise "
        f"(power 80 %, standard deviation of paired differences {found.std:.2f}){more}."
    )


def _pre_registered(named: NamedPair) -> Iterable[str]:
    """Yields how the p-value of the named comparison is to be read; nothing if it is one among others."""
    if not named.confirmatory:
        return
    pair = f"* Pre-registered comparison: {named.label} against {named.reference}."
    if named.seeds:
        yield f"{pair} It uses the seeds set apart alone, so its p-value is not corrected."
    else:
        yield (
            f"{pair} This is look {named.looks} at its outcome; its p-value is multiplied by {2**named.looks}, so that "
            "the probability of a false positive over all looks is at most 5 %."
        )


def _budget(budget: Mapping[str, Any] | None) -> str:
    """Returns what rows have in common if it is not the number of steps."""
    if not budget:
        return ""
    what = {"flops": "training FLOPs", "seconds": "training seconds"}.get(budget["unit"], budget["unit"])
    steps = ", ".join(f"{label} {count:,}" for label, count in budget["steps"].items())
    return f"each row has as many {what} as {budget['of']} at {budget['reference_steps']:,} steps; steps: {steps}"


def _code(study: Mapping[str, Any]) -> str:
    commit = study.get("commit")
    state = " with uncommitted changes" if study.get("dirty") else ""
    # An installed package has no commit: its version says which code ran.
    where = f", commit {commit}{state}" if commit else ""
    return f"mtlbench {study.get('package', '?')}{where}"
