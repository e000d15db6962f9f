"""Scores after every combination of groups of source tasks, and how they depend on the tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import StatisticsError, linear_regression
from typing import Any

from mtlbench.report import formatting
from mtlbench.report.model import Column, ConditionRow
from mtlbench.report.statistics import Difference, Estimate, estimate, paired
from mtlbench.report.tables.drops import drops
from mtlbench.report.transfer import Combination, Transfer, Trend

Record = Mapping[str, Any]
Gains = dict[str, dict[int, float]]
"""Combination -> seed -> gain in per cent."""


def transfer_of(about: Record, rows: Sequence[ConditionRow], columns: Sequence[Column]) -> Transfer | None:
    """Returns scores and statistics of a study of the scenario `transfer`; None of another one.

    Args:
        about: Section ``scenario`` of ``study.json``.
        rows: Rows of the table; the floor has no part in it.
        columns: All metrics.
    """
    found = about.get("transfer")
    if not found:
        return None
    targets = [c for c in columns if c.primary and c.task not in about["ignored"]]
    learned = [row for row in rows if not row.floor]
    return Transfer(
        {c.task: formatting.metric(c) for c in targets},
        tuple(line for row in learned for line in _combinations(about, row, targets)),
        tuple(trend for row in learned for trend in _trends(about, row, targets)),
    )


def _combinations(about: Record, row: ConditionRow, targets: Sequence[Column]) -> Iterator[Combination]:
    mean = _mean([_gains(about, row, target) for target in targets])
    for name, tasks in about["transfer"]["tasks"].items():
        values = {c.task: row.scores.get(name, {}).get(c.key, {}) for c in targets}
        scores = {task: estimate(of_task.values()) for task, of_task in values.items() if of_task}
        yield Combination(row.label, name, tasks, scores, _estimate(mean.get(name, {})))


def _trends(about: Record, row: ConditionRow, targets: Sequence[Column]) -> Iterator[Trend]:
    every = {target.task: _gains(about, row, target) for target in targets}
    ends = {task: _ends(about, gains, task) for task, gains in every.items()}
    for task, gains in every.items():
        yield Trend(row.label, task, _slope(about, gains), _gap(ends[task]))
    owned = [ends[task] for task in every if task in about["transfer"]["own"]]
    yield Trend(row.label, "", _slope(about, _mean(list(every.values()))), _gap(_mean(owned)))


def _ends(about: Record, gains: Gains, task: str) -> Gains:
    """Returns the gains after all groups and after the group that lists the target."""
    wanted = {"all": about["transfer"]["all"], "own": about["transfer"]["own"].get(task)}
    return {name: gains[column] for name, column in wanted.items() if column in gains}


def _gap(ends: Gains) -> Difference | None:
    return paired(ends.get("all", {}), ends.get("own", {}))


def _gains(about: Record, row: ConditionRow, target: Column) -> Gains:
    """Returns the gains of a target over no source tasks."""
    base = row.scores.get(about["base"], {}).get(target.key, {})
    return {
        name: {s: -drop for s, drop in drops({target.key: found}, {target.key: base}, [target]).items()}
        for name in about["columns"]
        if (found := row.scores.get(name, {}).get(target.key))
    }


def _mean(every: Sequence[Gains]) -> Gains:
    """Returns the mean over targets of what all of them have."""
    if not every:
        return {}
    return {
        name: {
            seed: sum(gains[name][seed] for gains in every) / len(every)
            for seed in every[0][name]
            if all(seed in gains[name] for gains in every)
        }
        for name in every[0]
        if all(name in gains for gains in every)
    }


def _slope(about: Record, gains: Gains) -> Estimate | None:
    """Returns the slope over all combinations of the seeds that have every one of them."""
    columns, tasks = about["columns"], about["transfer"]["tasks"]
    if not all(name in gains for name in columns):
        return None
    seeds = [seed for seed in gains[columns[0]] if all(seed in gains[name] for name in columns)]
    counts = [float(tasks.get(name, 0)) for name in columns]
    try:
        return _estimate({s: linear_regression(counts, [gains[name][s] for name in columns]).slope for s in seeds})
    except StatisticsError:  # Fewer than two numbers of tasks.
        return None


def _estimate(values: Mapping[int, float]) -> Estimate | None:
    return estimate(values.values()) if values else None
