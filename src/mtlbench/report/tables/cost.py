"""Computes the cost of a row from the costs of its runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtlbench.report import columns
from mtlbench.report.model import Cost, PairedTime

Record = Mapping[str, Any]


def runs_of(entry: Record) -> list[str]:
    """Returns the distinct runs of an entry, in order, without the trials of its search."""
    trials = set(entry.get("trials") or ())
    return [run for run in dict.fromkeys([*entry["runs"], *entry["serving"].values()]) if run not in trials]


def search_seconds(entry: Record, done: Mapping[str, Record]) -> float | None:
    """Returns the training time of all finished trials of an entry's search; ``None`` without a search."""
    trials = searched(entry)
    runs = dict.fromkeys(run for trial in trials for run in trial.get("runs") or ())
    times = [(done[run].get("cost") or {}).get("train_seconds") for run in runs if run in done]
    return None if not trials or None in times else math.fsum(t for t in times if t is not None)


def searched(entry: Record) -> list[Record]:
    """Returns the trials of an entry as its search recorded them; empty without a search."""
    search = (entry.get("record") or {}).get("search")
    trials = search.get("trials") if isinstance(search, dict) else None
    return [trial for trial in trials if isinstance(trial, dict)] if isinstance(trials, list) else []


def paired_times(study: Record, measured: Mapping[str, Record]) -> dict[str, PairedTime]:
    """Returns the times in pairs by label, of the rows that are still those that were measured.

    Args:
        study: Content of ``study.json``.
        measured: Entries of ``cost.json``.
    """
    keys = study.get("cost_keys") or {}
    return {
        label: PairedTime(entry["ratio"], entry["low"], entry["high"], entry["pairs"], entry["reference"])
        for label, entry in measured.items()
        if label in keys and entry.get("key") == keys[label]
    }


def cost_of(
    entries: Iterable[Record], done: Mapping[str, Record], measured: Mapping[str, PairedTime] | None = None
) -> Cost | None:
    """Returns the cost of one seed, averaged over the seeds whose runs are all done; ``None`` without any.

    Args:
        entries: Entries of one label.
        done: Finished runs by id.
        measured: Time in pairs by label.
    """
    full = [e for e in entries if e["serving"] and all(run in done for run in runs_of(e))]
    if not full:
        return None
    serving = [_costs(dict.fromkeys(e["serving"].values()), done) for e in full]
    return Cost(
        {c.key: _mean([_of_seed(c, e, done) for e in full]) for c in columns.COSTS}
        | {columns.SEARCH.key: search_seconds(full[0], done)},  # All seeds of a row share one search.
        runs=max(map(len, serving)),
        devices=", ".join(sorted({_device(cost) for costs in serving for cost in costs})),
        paired=(measured or {}).get(full[0]["label"]),
    )


def _costs(runs: Iterable[str], done: Mapping[str, Record]) -> list[Record]:
    return [{"steps": done[run].get("steps"), **(done[run].get("cost") or {})} for run in runs]


def _of_seed(column: columns.CostColumn, entry: Record, done: Mapping[str, Record]) -> float | None:
    """Returns what one seed costs; ``None`` if any value is unknown."""
    if column.per_task:
        costs = dict(zip(entry["serving"], _costs(entry["serving"].values(), done), strict=True))
        values: list[Any] = [(cost.get(column.key) or {}).get(task) for task, cost in costs.items()]
        return None if None in values else sum(values) / len(values)
    runs = runs_of(entry) if column.preparing else dict.fromkeys(entry["serving"].values())
    values = [cost.get(column.key) for cost in _costs(runs, done)]
    return None if None in values else column.merge(values)


def _mean(seeds: Sequence[float | None]) -> float | None:
    """Returns the mean over seeds; ``None`` if any value is unknown."""
    values = [value for value in seeds if value is not None]
    return sum(values) / len(values) if len(values) == len(seeds) else None


def _device(cost: Record) -> str:
    count = cost.get("devices", 1)
    threads = f" (threads: {cost['threads']})" if cost.get("device") == "cpu" and cost.get("threads") else ""
    return (f"{count} x " if count != 1 else "") + str(cost.get("device", "unknown")) + threads
