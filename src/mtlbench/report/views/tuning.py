"""The table of equal tuning: trials, chosen values and cost of every row."""

from __future__ import annotations

from collections.abc import Sequence

from mtlbench.report import formatting
from mtlbench.report.columns import METHOD, TableColumn, grid
from mtlbench.report.tuning import Tuning, TuningTrial
from mtlbench.report.views.grouping import Section


def _score(trial: TuningTrial | None) -> float | None:
    return trial.score if trial else None


def _values(tuning: Tuning) -> str:
    if tuning.chosen == 0 or tuning.best is None:
        return "the declared ones"
    return ", ".join(f"{key} {_text(value)}" for key, value in tuning.best.values.items())


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


TUNED = (
    METHOD,
    TableColumn(
        head="trials",
        value=lambda t: f"{t.tried}, {t.failures} failed" if t.failures else str(t.tried),
        tip="configurations that were tried",
    ),
    TableColumn(
        head="declared %",
        value=lambda t: _score(t.declared),
        show=lambda v: formatting.number(v, 2, sign=True),
        tip="validation gain of trial 0, which has the declared values",
    ),
    TableColumn(
        head="chosen %",
        value=lambda t: _score(t.best),
        show=lambda v: formatting.number(v, 2, sign=True),
        tip="validation gain of the chosen trial",
    ),
    TableColumn(head="search", value=lambda t: t.seconds, show=formatting.duration, group="cost"),
    TableColumn(head="chosen values", value=_values, text=True),
)
"""Columns of equal tuning; a row is a `Tuning`."""

_NOTES = (
    "Declared and chosen are validation gains over the reference with the seeds of the search. The chosen one is the "
    "best of several, so it promises too much; the leaderboard's scores are of other seeds and of another split.",
)


def tuning_sections(tunings: Sequence[Tuning]) -> tuple[Section, ...]:
    """Returns the table of equal tuning; none without a search."""
    return (Section("Equal tuning", grid(TUNED, tunings), _NOTES),) if tunings else ()
