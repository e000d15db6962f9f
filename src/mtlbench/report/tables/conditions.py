"""Builds the table of a study that varies conditions: a row per method, a column per condition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mtlbench.registry import FLOOR
from mtlbench.report import formatting
from mtlbench.report.columns import kind_of_time
from mtlbench.report.model import Column, Comparison, ConditionBoard, ConditionRow, NamedPair, PairedTime
from mtlbench.report.notes import rules
from mtlbench.report.statistics import Difference, estimate, holm, paired
from mtlbench.report.tables.cost import cost_of, paired_times
from mtlbench.report.tables.drops import Scores, drops
from mtlbench.report.tables.floor import SCORES, about_floor, at_floor, closed, not_better
from mtlbench.report.tables.records import by_label, columns_of, known_states, problems_of, score_of
from mtlbench.report.tables.transfer import transfer_of

Record = Mapping[str, Any]


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
    rows, weak = _with_floor(rows, about, columns)
    marks = _footnotes(rows, about, weak)
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
        notes=(
            *_notes(about, named, rows),
            *_chosen(study["rows"]),
            *([about_floor(study)] if any(row.floor for row in rows) else []),
            *marks,
            *filter(None, [kind_of_time(rows)]),
        ),
        footnotes=marks,
        problems=tuple(problems.values()),
        quantity=quantity,
        digits=formatting.decimals(means) if scored else 2,
        signed=not scored,
        conditions=(*about["columns"], *_extra(about)),
        columns=columns,
        rows=rows,
        reference=reference,
        comparisons=tuple(_comparisons(rows, about["columns"], reference, named)),
        transfer=transfer_of(about, rows, [c for c in columns if _wanted(c, about)]),
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
        name: scores[name][wanted[0].key] if "target" in about else drops(scores[name], scores[about["base"]], wanted)
        for name in about["columns"]
    }
    for extra in _extra(about):
        first, second = (values[name] for name in about["columns"])
        values[extra] = {seed: second[seed] - first[seed] for seed in second if seed in first}
    planned = tuple(sorted({*study["seeds"], *(entry["seed"] for entry in entries)}))
    label, method = entries[0]["label"], entries[0]["method"]
    return ConditionRow(label, method, planned, values, scores, cost_of(entries, done, times), floor=method == FLOOR)


def _extra(about: Record) -> list[str]:
    """Returns the column that holds the second condition minus the first, if the scenario has one."""
    return [about["difference"]] if about.get("difference") and len(about["columns"]) == 2 else []


def _with_floor(
    rows: tuple[ConditionRow, ...], about: Record, columns: Sequence[Column]
) -> tuple[tuple[ConditionRow, ...], tuple[str, ...]]:
    """Returns the rows with what is not better than the floor, and the tasks in which a drop refers to such a score."""
    floor = next((row for row in rows if row.floor), None)
    if floor is None:
        return rows, ()
    wanted = [c for c in columns if _wanted(c, about)]
    others = [row for row in rows if not row.floor]
    if "target" in about:
        (column,) = wanted
        low = {
            id(r): frozenset(
                n for n in about["columns"] if not_better(r.values[n], floor.values.get(n, {}), column.higher_is_better)
            )
            for r in others
        }
        return tuple(
            replace(
                row,
                at_floor=low.get(id(row), frozenset()),
                gaps={
                    name: estimate(shares.values())
                    for name in about["columns"]
                    if (shares := closed(row.values[name], floor.values.get(name, {}), column.best))
                },
            )
            for row in rows
        ), ()
    base = about["base"]
    found = {id(row): at_floor(row.scores.get(base, {}), floor.scores.get(base, {}), wanted) for row in others}
    marked = tuple(replace(r, at_floor=frozenset(r.values if found.get(id(r)) else ())) for r in rows)
    return marked, tuple(c.task for c in wanted if any(c.key in keys for keys in found.values()))


def _footnotes(rows: Sequence[ConditionRow], about: Record, weak: Sequence[str]) -> tuple[str, ...]:
    if not any(row.at_floor for row in rows):
        return ()
    if "target" in about:
        return (f"{SCORES} A difference carries the mark where the reference does, and then supports no claim.",)
    return (
        f"{formatting.MARK} In the condition {about['base']}, the row is not better than the floor in some of "
        f"{', '.join(weak)}: what was not learned cannot drop.",
    )


def _wanted(column: Column, about: Record) -> bool:
    """Whether a cell is made from this metric."""
    if "target" in about:
        return column.primary and column.task == about["target"]
    ignored = about["ignored"]  # Studies of earlier versions hold the name of one task.
    return column.in_delta_m and column.task not in ([ignored] if isinstance(ignored, str) else ignored)


def _comparisons(
    rows: Sequence[ConditionRow], conditions: Sequence[str], reference: str, named: NamedPair | None
) -> list[tuple[str, Comparison]]:
    """Compares every row with the reference; the pre-registered pair is corrected separately, over conditions."""
    base = next(row for row in rows if row.label == reference)
    others = [row for row in rows if row is not base and not row.floor]
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
            unfounded = condition in base.at_floor
            found.append((condition, Comparison(label, reference, d, p, group is first, unfounded)))
    return found


def _difference(
    row: ConditionRow, base: ConditionRow, condition: str, seeds: Collection[int] = ()
) -> Difference | None:
    ours = {s: v for s, v in row.values.get(condition, {}).items() if not seeds or s in seeds}
    return paired(ours, base.values.get(condition, {}))


def _quantity(about: Record, columns: Sequence[Column]) -> str:
    if "target" not in about:
        return f"drop of {about.get('of') or 'the other tasks'} in % ↓"
    return formatting.metric(next(c for c in columns if c.primary and c.task == about["target"]))


def _chosen(entries: Sequence[Record]) -> list[str]:
    """Returns a note on the follow-up runs that rows chose for an unseen task; none where there was no choice."""
    lines = []
    for label, of_row in by_label(entries).items():
        found = [e["record"] for e in of_row if (e.get("record") or {}).get("kind") == "unseen_task"]
        counts = Counter(_second(record) for record in found if len(record["tried"]) > 1)
        if counts:
            lines.append(f"{label}: " + ", ".join(f"{what} ({count})" for what, count in sorted(counts.items())))
    start = "Second runs that the K examples chose, over conditions and seeds. "
    return [start + "; ".join(lines) + "."] if lines else []


def _second(record: Record) -> str:
    """Describes the chosen follow-up run by that in which it differs from others."""
    one = record["tried"][record["best"]]
    begun = f"gates of {one['related']}" if one.get("related") else f"draw {(one.get('draw') or 0) + 1} of the head"
    several = len({other["steps"] for other in record["tried"]}) > 1
    return begun + (f" and {one['steps']} steps" if several else "")


def _notes(about: Record, named: NamedPair | None, rows: Sequence[ConditionRow]) -> tuple[str, ...]:
    lines = [
        "Cells show the mean over seeds and its 95 % t interval, and n if seeds are missing. Differences are paired by "
        "seed; p-values of paired t tests are corrected by Holm over all rows and conditions.",
        "Costs are means over conditions and seeds. Runs that only prepare others count towards training time alone.",
    ]
    if "target" not in about:
        lines.append(
            "The drop is 100 · mean over tasks of ±(without − with) / mean of without. Tasks outside Δm do not count."
        )
    for extra in _extra(about):
        first, second = about["columns"]
        what, worth = "drop", " It is what the relation between the tasks is worth, because both conditions add a task."
        if "target" in about:
            what, worth = "score", ""
        lines.append(f"{extra}: the {what} under {second!r} minus that under {first!r}, paired by seed.{worth}")
    alone = about.get("alone")
    if alone and not any(row.method == alone for row in rows):
        lines.append(
            f"There is no row of {alone}, so what {about['target']} gains from the other tasks cannot be seen. Add "
            f"{alone} to the methods of the suite."
        )
    if named and named.confirmatory:
        looks = "" if named.seeds else f", and multiplied by {2**named.looks} for look {named.looks} at its outcome"
        lines.append(
            f"* Pre-registered comparison: {named.label} against {named.reference}. Its p-values are corrected over "
            f"conditions alone{looks}."
        )
    return tuple(lines)
