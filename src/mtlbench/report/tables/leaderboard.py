"""Builds the leaderboard of a study from plain records of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mtlbench.errors import StoreError, unknown_name
from mtlbench.metrics.relative import delta_m
from mtlbench.registry import FLOOR
from mtlbench.report.model import Column, Leaderboard, NamedPair, PairedTime, Row
from mtlbench.report.notes import notes, rules
from mtlbench.report.published import comparable
from mtlbench.report.statistics import Difference, estimate
from mtlbench.report.statistics import paired as paired_by_seed
from mtlbench.report.tables.cost import cost_of, paired_times
from mtlbench.report.tables.floor import about_floor, at_floor, footnotes, gaps, mean_gap
from mtlbench.report.tables.grouping import groupings
from mtlbench.report.tables.ranking import against as margins
from mtlbench.report.tables.ranking import compare, order, resolution
from mtlbench.report.tables.records import by_label, columns_of, known_states, problems_of, score_of
from mtlbench.report.tables.tuning import tunings

Record = Mapping[str, Any]
Scores = dict[tuple[str, str], dict[int, float]]
"""(task, protocol) -> seed -> score."""


def build(
    study: Record,
    results: Mapping[str, Record],
    states: Mapping[str, str] | None = None,
    errors: Mapping[str, Record] | None = None,
    specs: Mapping[str, Record] | None = None,
    *,
    named: NamedPair | None = None,
    against: str = "",
    measured: Mapping[str, Record] | None = None,
) -> Leaderboard:
    """Returns the leaderboard of a study.

    Args:
        study: Content of ``study.json``.
        results: Content of ``result.json`` per run id.
        states: ``done``, ``failed``, ``running``, ``stale`` or ``todo`` per run id; a result counts only when
            its run is done. Default: done if there is a result.
        errors: Content of ``error.json`` per run id.
        specs: Content of ``spec.json`` per run id; without it no published results are shown.
        named: The comparison that the suite names, as far as the store knows of it.
        against: Row that the intervals of Δm refer to. Default: the baseline.
        measured: Entries of ``cost.json`` by label.

    Raises:
        StoreError: If a run reports another protocol or split than its column.
    """
    columns = columns_of(study)
    known = known_states(study, results, states, errors or {})
    done = {run: result for run, result in results.items() if known.get(run) == "done"}
    paired = paired_times(study, measured or {})
    drafts = [_draft(study, entries, columns, done, paired) for entries in by_label(study["rows"]).values()]
    baseline = _baseline(study, drafts)
    floor = next((draft for draft in drafts if draft.row.floor), None)
    if floor:
        drafts = [_with_floor(draft, floor, columns) for draft in drafts]
        baseline = _baseline(study, drafts)
    base = baseline.row.label if baseline else study["baseline"]
    weak = [c.task for c in columns if c.in_delta_m and baseline and c.key in baseline.row.at_floor]
    finished = (replace(_finish(draft, baseline, columns), unfounded=bool(weak)) for draft in drafts)
    rows = margins(order(finished), against or base)
    if against and against not in (labels := [row.label for row in rows]):
        raise StoreError("Intervals refer to a row of the table. " + unknown_name("row", against, labels))
    marks = footnotes(any(row.at_floor for row in rows), base, weak)
    about = [*([about_floor(study)] if floor else []), *marks]
    serving = dict.fromkeys(run for e in study["rows"] for run in e["serving"].values() if run in done)
    others, left_out = comparable(study["suite"], [((specs or {}).get(run, {}), done[run]) for run in serving])
    able = resolution(rows, base)
    return Leaderboard(
        suite=study["suite"],
        title=study.get("title", ""),
        baseline=base,
        against=against or base,
        rules=rules(study, columns, named),
        columns=columns,
        rows=rows,
        notes=(*notes(rows, named, against or base, able), *about, *filter(None, [left_out])),
        footnotes=marks,
        comparisons=compare(rows, named),
        problems=tuple(problems_of(study["rows"], known, errors or {})),
        groupings=groupings(study, columns, done),
        tunings=tunings(study, done),
        published=others,
        resolution=able,
    )


@dataclass(frozen=True)
class _Draft:
    """A row before it meets the baseline."""

    row: Row
    scores: Scores


def _draft(
    study: Record,
    entries: list[Record],
    columns: tuple[Column, ...],
    done: Mapping[str, Record],
    paired: Mapping[str, PairedTime],
) -> _Draft:
    scores: Scores = {column.key: {} for column in columns}
    for entry in entries:
        for column in columns:
            result = done.get(entry["serving"].get(column.task, ""))
            value = None if result is None else score_of(result, column, study["split"])
            if value is not None:
                scores[column.key][entry["seed"]] = value
    planned = sorted({*study["seeds"], *(entry["seed"] for entry in entries)})
    label, method = entries[0]["label"], entries[0]["method"]
    served = {task for entry in entries for task in entry["serving"]}
    # The floor lacks tasks whose kind has none, and is complete without them.
    wanted = [c for c in columns if c.primary and (c.task in served or method != FLOOR)]
    full = [s for s in planned if wanted and all(s in scores[c.key] for c in wanted)]
    cells = {key: estimate(by_seed.values()) for key, by_seed in scores.items() if by_seed}
    cost = cost_of(entries, done, paired)
    row = Row(label, method, tuple(full), tuple(planned), cells, cost=cost, scores=scores, floor=method == FLOOR)
    return _Draft(row, scores)


def _baseline(study: Record, drafts: list[_Draft]) -> _Draft | None:
    name = study["baseline"]
    named = [d for d in drafts if d.row.label == name] or [d for d in drafts if d.row.method == name]
    return named[0] if named else None


def _with_floor(draft: _Draft, floor: _Draft, columns: tuple[Column, ...]) -> _Draft:
    """Returns a row with the comparison of its scores with the floor."""
    row = draft.row
    by_task = gaps(draft.scores, floor.scores, columns)
    tasks = [c.task for c in columns if c.in_delta_m and floor.scores[c.key]]
    complete = row.seeds == row.planned
    compared = replace(
        row,
        at_floor=frozenset() if row.floor else at_floor(draft.scores, floor.scores, columns),
        gaps={task: estimate(by_seed.values()) for task, by_seed in by_task.items()},
        gap=mean_gap(by_task, tasks, row.seeds) if complete else None,
    )
    return replace(draft, row=compared)


def _finish(draft: _Draft, baseline: _Draft | None, columns: tuple[Column, ...]) -> Row:
    """Returns the row with Δm and gains, or with the reason why they are blank."""
    row, scored = draft.row, [c for c in columns if c.in_delta_m]
    row = replace(row, gains=_gains(draft, baseline, scored))
    hint = _blank(row, baseline, scored)
    if hint or baseline is None:
        return replace(row, hint=hint)
    reference = {c.task: estimate(baseline.scores[c.key][s] for s in row.seeds).mean for c in scored}
    if zero := [task for task, value in reference.items() if value == 0]:
        return replace(row, hint=f"Δm divides by the single-task score, which is 0 for {', '.join(zero)}")
    up = {c.task: c.higher_is_better for c in scored}
    deltas = {s: delta_m({c.task: draft.scores[c.key][s] for c in scored}, reference, up) for s in row.seeds}
    return replace(row, deltas=deltas, delta=estimate(deltas.values()))


def _blank(row: Row, baseline: _Draft | None, scored: list[Column]) -> str:
    """Returns why Δm of a row must stay blank, ``""`` if it need not."""
    if row.seeds != row.planned:
        absent = [str(s) for s in row.planned if s not in row.seeds]
        return f"missing cells in seed {', '.join(absent)}"
    if not scored:
        return "no task of this suite enters Δm"
    if any(c.key not in row.cells for c in scored):
        return "some task has no floor"
    if baseline is None:
        return "Δm needs single-task runs: add single_task to the suite's methods"
    absent = [str(s) for s in row.seeds if any(s not in baseline.scores[c.key] for c in scored)]
    return f"Δm needs single-task runs of seed {', '.join(absent)}" if absent else ""


def _gains(draft: _Draft, baseline: _Draft | None, scored: list[Column]) -> dict[str, Difference]:
    """Returns the relative gain per task over the seeds that both rows have; none for the baseline itself."""
    gains: dict[str, Difference] = {}
    if baseline is None or draft is baseline:
        return gains
    for column in scored:
        ours, theirs = draft.scores[column.key], baseline.scores[column.key]
        common = sorted(set(ours) & set(theirs))
        reference = estimate(theirs[s] for s in common).mean if common else 0.0
        if reference:
            factor = (100 if column.higher_is_better else -100) / reference
            difference = paired_by_seed({s: factor * ours[s] for s in common}, {s: factor * theirs[s] for s in common})
            gains |= {column.task: difference} if difference else {}
    return gains
