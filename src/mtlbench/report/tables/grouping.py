"""The groups of tasks that a plan found, their cost, and how well its predictions rank groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

from mtlbench.grouping import from_pairs, subsets
from mtlbench.metrics.relative import delta_m
from mtlbench.report.groups import Affinity, FoundGroups, Grouping, GroupQuality
from mtlbench.report.model import Column
from mtlbench.report.statistics import estimate
from mtlbench.report.tables.cost import runs_of
from mtlbench.report.tables.records import by_label, score_of
from mtlbench.runs import shapes

Record = Mapping[str, Any]
Trained = dict[frozenset[str], Record]
"""Of one row and seed: the result of the run that trained a group of tasks, by group."""


def groupings(study: Record, columns: Sequence[Column], done: Mapping[str, Record]) -> tuple[Grouping, ...]:
    """Returns the groupings that finished plans found, in the order of the suite.

    Args:
        study: Content of ``study.json``.
        columns: Its metrics.
        done: Result of every finished run.
    """
    entries, usual = _entries(study, done)
    found: dict[str, list[FoundGroups]] = {}
    for entry in entries:
        trained = _trained(study, entry, done, _trainers(entry, done) or usual)
        found.setdefault(entry["label"], []).append(_found(study, columns, entry, done, trained))
    return tuple(_grouping(label, seeds, found[label]) for label, seeds in by_label(entries).items())


def probed(
    study: Record, columns: Sequence[Column], done: Mapping[str, Record], summaries: Mapping[str, Record]
) -> dict[str, list[FoundGroups]]:
    """Returns how well the affinities that ordinary rows measured rank the groups of tasks, by row and seed.

    A row is one of a method that trains all tasks together, and whose summary holds an ``affinity`` of every pair, as
    those of `it_mtl` and `hydalearn` (``main: all``). The quality of a group for a task is predicted as `tag` does, by
    the mean over the rest of the group.

    Args:
        study: Content of ``study.json``, with rows that trained groups of tasks.
        columns: Its metrics.
        done: Result of every finished run.
        summaries: ``summary.json`` of the runs that have one.
    """
    tasks = list(study["tasks"])
    found: dict[str, list[FoundGroups]] = {}
    entries, usual = _entries(study, done)
    for entry in (e for e in study["rows"] if e not in entries and len(set(e["serving"].values())) == 1):
        affinity: Any = summaries.get(next(iter(entry["serving"].values())), {}).get("affinity")
        if not shapes.table(affinity) or [len(row) for row in affinity] != [len(tasks)] * len(tasks):
            continue
        pairs = _by_pair({"tasks": tasks, "values": affinity})
        groups = [group for group in subsets(tasks) if all((a, b) in pairs for a, b in permutations(group, 2))]
        predicted = [{"group": g, "values": v} for g, v in from_pairs(groups, pairs, math.nan).items()]
        trained = _trained(study, entry, done, usual)
        qualities = tuple(_qualities(study, columns, predicted, trained))
        one = FoundGroups(entry["seed"], (tuple(tasks),), dict.fromkeys(tasks, 0), None, None, None, qualities)
        found.setdefault(entry["label"], []).append(one)
    return found


def _entries(study: Record, done: Mapping[str, Record]) -> tuple[list[Record], set[str]]:
    """Returns the entries whose plans grouped tasks, and the methods that trained their groups."""
    entries = [e for e in study["rows"] if (e.get("record") or {}).get("kind") == "grouping"]
    return entries, {method for entry in entries for method in _trainers(entry, done)}


def _grouping(label: str, entries: Sequence[Record], found: Sequence[FoundGroups]) -> Grouping:
    correlations = [f.correlation for f in found if f.correlation is not None]
    shares = [f.share for f in found if f.share is not None]
    return Grouping(
        label,
        tuple(found),
        estimate(correlations) if correlations else None,
        estimate(shares) if shares else None,
        _affinity([e["record"]["affinity"] for e in entries if e["record"].get("affinity")]),
        tuple(dict.fromkeys(e["record"]["note"] for e in entries if e["record"].get("note"))),
    )


def _found(
    study: Record, columns: Sequence[Column], entry: Record, done: Mapping[str, Record], trained: Trained
) -> FoundGroups:
    record, runs = entry["record"], runs_of(entry)
    search = set(record.get("search_runs") or ())
    subsets = {group: result for group, result in trained.items() if group <= set(study["tasks"])}
    complete = len(subsets) == 2 ** len(study["tasks"]) - 1
    return FoundGroups(
        seed=entry["seed"],
        groups=tuple(tuple(group) for group in record["groups"]),
        serves=dict(record["serves"]),
        search_seconds=_seconds(done.get(run, {}) for run in runs if run in search),
        group_seconds=_seconds(done.get(run, {}) for run in runs if run not in search),
        exhaustive_seconds=_seconds(subsets.values()) if complete else None,
        qualities=tuple(_qualities(study, columns, record.get("predicted") or (), trained)),
    )


def _trainers(entry: Record, done: Mapping[str, Record]) -> set[str]:
    """Returns the methods that train the groups of a row, groups of one task aside."""
    served = [done[run] for run in dict.fromkeys(entry["serving"].values()) if run in done]
    return {result["method"] for result in served if len(result["tasks"]) > 1}


def _trained(study: Record, entry: Record, done: Mapping[str, Record], trainers: set[str]) -> Trained:
    """Returns every group that the study trained as this row trains its own; the row's own runs come first."""
    alone = {e["method"] for e in study["rows"] if study["baseline"] in (e["label"], e["method"])} or {
        study["baseline"]
    }
    # Networks of reduced size say nothing about groups; the row's `small_runs` names them.
    small = {run for e in study["rows"] for run in (e.get("record") or {}).get("small_runs", ())}
    found: Trained = {}
    for run in dict.fromkeys([*runs_of(entry), *done]):
        result = done.get(run)
        if result and run not in small and result["seed"] == entry["seed"]:
            fits = trainers if len(result["tasks"]) > 1 else alone
            if result["method"] in fits:
                found.setdefault(frozenset(result["tasks"]), result)
    return found


def _qualities(
    study: Record, columns: Sequence[Column], predicted: Iterable[Record], trained: Trained
) -> Iterator[GroupQuality]:
    """Yields prediction and measurement of every group that has both; alone, a task gains nothing by definition."""
    for entry in predicted:
        group, values = tuple(entry["group"]), entry["values"]
        known = [float(values[t]) for t in group if isinstance(values.get(t), int | float)]
        if len(group) > 1 and len(known) == len(group) and all(map(math.isfinite, known)):
            measured = _measured(study, [c for c in columns if c.primary and c.task in group], trained)
            if measured is not None:
                yield GroupQuality(group, math.fsum(known) / len(known), measured)


def _measured(study: Record, columns: Sequence[Column], trained: Trained) -> float | None:
    """Returns a group's mean gain in per cent over single-task runs of its seed; None if a score is missing."""
    together = trained.get(frozenset(c.task for c in columns))
    scores: dict[str, float] = {}
    baseline: dict[str, float] = {}
    for column in columns:
        apart = trained.get(frozenset([column.task]))
        values = [score_of(result, column, study["split"]) if result else None for result in (together, apart)]
        if values[0] is None or not values[1]:
            return None
        scores[column.task], baseline[column.task] = values[0], values[1]
    return delta_m(scores, baseline, {c.task: c.higher_is_better for c in columns})


def _seconds(results: Iterable[Record]) -> float | None:
    """Returns the training time of some runs; None as soon as one is unknown."""
    seconds = [(result.get("cost") or {}).get("train_seconds") for result in results]
    return None if None in seconds else math.fsum(s for s in seconds if s is not None)


def _affinity(records: Sequence[Record]) -> Affinity | None:
    """Returns the mean over seeds; a cell that no seed has is None."""
    if not records:
        return None
    tasks = tuple(records[0]["tasks"])
    tables = [_by_pair(record) for record in records]
    values = tuple(tuple(_mean([table[a, b] for table in tables if (a, b) in table]) for b in tasks) for a in tasks)
    return Affinity(records[0].get("what") or "affinity", tasks, values, len(records))


def _by_pair(record: Record) -> dict[tuple[str, str], float]:
    return {
        (recipient, source): float(value)
        for recipient, row in zip(record["tasks"], record["values"], strict=True)
        for source, value in zip(record["tasks"], row, strict=True)
        if value is not None and math.isfinite(value)
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
