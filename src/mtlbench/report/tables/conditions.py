"""Builds the table of a study that varies conditions: a row per method, a column per condition."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mtlbench.report import formatting
from mtlbench.report.columns import kind_of_time
from mtlbench.report.model import Column, Comparison, ConditionBoard, ConditionRow, NamedPair, PairedTime
from mtlbench.report.notes import rules
from mtlbench.report.statistics import Difference, holm, paired
from mtlbench.report.tables.cost import cost_of, paired_times
from mtlbench.report.tables.records import by_label, columns_of, known_states, problems_of, score_of

Record = Mapping[str, Any]
Scores = dict[tuple[str, str], dict[int, float]]
"""(task, protocol) -> seed -> score."""


def build(
    study: Record,
    results: Mapping[str, Record],
    states: Mapping[str, str] | None,
    errors: Mapping[str, Record],
    named: NamedPair | None = None,
    measured: Mapping[str, Record] | None = None,
) -> ConditionBoard:
    """Builds the table of a study; arguments and errors are those of `leaderboard.build`."""
    about, columns = study["scenario"], columns_of(study)
    known = known_states(study, results, states, errors)
    done = {run: result for run, result in results.items() if known.get(run) == "done"}
    times = paired_times(study, measured or {})
    rows = tuple(_row(study, entries, columns, done, times) for entries in by_label(study["rows"]).values())
    labels = [row.label for row in rows]
    wanted = named.reference if named else ""
    reference = next(name for name in (wanted, study["baseline"], labels[0]) if name in labels)
    means = [sum(v.values()) / len(v) for row in rows for v in row.values.values() if v]
    quantity = _quantity(about, columns)
    problems = {(p.run, p.label, p.seed): p for p in problems_of(study["rows"], known, errors)}
    scored = "target" in about
    return ConditionBoard(
        suite=study["suite"],
        title=study.get("title", ""),
        rules=(*rules(study, columns, named), ("Cells", quantity)),
        notes=(*_notes(about, named), *filter(None, [kind_of_time(rows)])),
        problems=tuple(problems.values()),
        quantity=quantity,
        digits=formatting.decimals(means) if scored else 2,
        signed=not scored,
        conditions=tuple(about["columns"]),
        columns=columns,
        rows=rows,
        reference=reference,
        comparisons=tuple(_comparisons(rows, about["columns"], reference, named)),
    )


def _row(
    study: Record,
    entries: list[Record],
    columns: Sequence[Column],
    done: Mapping[str, Record],
    times: Mapping[str, PairedTime],
) -> ConditionRow:
    about = study["scenario"]
    scores: dict[str, Scores] = {}
    for entry in entries:
        found = scores.setdefault(entry["condition"], {column.key: {} for column in columns})
        for column in columns:
            result = done.get(entry["serving"].get(column.task, ""))
            value = None if result is None else score_of(result, column, study["split"])
            if value is not None:
                found[column.key][entry["seed"]] = value
    wanted = [c for c in columns if _wanted(c, about)]
    values = {
        name: scores[name][wanted[0].key] if "target" in about else _drops(scores[name], scores[about["base"]], wanted)
        for name in about["columns"]
    }
    planned = tuple(sorted({*study["seeds"], *(entry["seed"] for entry in entries)}))
    return ConditionRow(
        entries[0]["label"], entries[0]["method"], planned, values, scores, cost_of(entries, done, times)
    )


def _wanted(column: Column, about: Record) -> bool:
    """Whether a cell is made from this metric."""
    if "target" in about:
        return column.primary and column.task == about["target"]
    return column.in_delta_m and column.task != about["ignored"]


def _drops(scores: Scores, base: Scores, columns: Sequence[Column]) -> dict[int, float]:
    """Returns the mean relative loss by seed in per cent, paired by seed and relative to the mean of the base."""
    keys = [c.key for c in columns]
    seeds = [s for s in base[keys[0]] if all(s in base[k] and s in scores[k] for k in keys)] if keys else []
    means = {k: sum(base[k][s] for s in seeds) / len(seeds) for k in keys} if seeds else {}
    if not all(means.values()):
        return {}
    signs = {c.key: 1 if c.higher_is_better else -1 for c in columns}
    return {s: 100 * sum(signs[k] * (base[k][s] - scores[k][s]) / means[k] for k in keys) / len(keys) for s in seeds}


def _comparisons(
    rows: Sequence[ConditionRow], conditions: Sequence[str], reference: str, named: NamedPair | None
) -> list[tuple[str, Comparison]]:
    """Compares every row with the reference; the pre-registered pair is corrected separately, over conditions."""
    base = next(row for row in rows if row.label == reference)
    others = [row for row in rows if row is not base]
    confirmatory = named is not None and named.confirmatory and named.reference == reference
    first = [row for row in others if named and confirmatory and row.label == named.label]
    found: list[tuple[str, Comparison]] = []
    for group in (first, [row for row in others if row not in first]):
        seeds = named.seeds if named and group is first else ()
        differences = [(c, row.label, _difference(row, base, c, seeds)) for row in group for c in conditions]
        there = [(c, label, d) for c, label, d in differences if d]
        adjusted = iter(holm([d.p for _, _, d in there if d.p is not None]))
        for condition, label, d in there:
            p = None if d.p is None else next(adjusted)
            p = named.adjusted(p) if named and group is first else p
            found.append((condition, Comparison(label, reference, d, p, named=group is first)))
    return found


def _difference(
    row: ConditionRow, base: ConditionRow, condition: str, seeds: Collection[int] = ()
) -> Difference | None:
    ours = {s: v for s, v in row.values.get(condition, {}).items() if not seeds or s in seeds}
    return paired(ours, base.values.get(condition, {}))


def _quantity(about: Record, columns: Sequence[Column]) -> str:
    if "target" not in about:
        return "drop of the other tasks in % ↓"
    return formatting.metric(next(c for c in columns if c.primary and c.task == about["target"]))


def _notes(about: Record, named: NamedPair | None) -> tuple[str, ...]:
    lines = [
        "Cells show the mean over seeds and its 95 % t interval, and n if seeds are missing. Differences are paired by "
        "seed; p-values of paired t tests are corrected by Holm over all rows and conditions.",
        "Costs are means over conditions and seeds. Runs that only prepare others count towards training time alone.",
    ]
    if "target" not in about:
        lines.append(
            "The drop is 100 · mean over tasks of ±(without − with) / mean of without. Tasks outside Δm do not count."
        )
    if named and named.confirmatory:
        looks = "" if named.seeds else f", and multiplied by {2**named.looks} for look {named.looks} at its outcome"
        lines.append(
            f"* Pre-registered comparison: {named.label} against {named.reference}. Its p-values are corrected over "
            f"conditions alone{looks}."
        )
    return tuple(lines)
