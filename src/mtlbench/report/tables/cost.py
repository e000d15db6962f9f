"""Computes the cost of a row from the costs of its runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mtlbench.report import columns
from mtlbench.report.model import Cost

Record = Mapping[str, Any]


def runs_of(entry: Record) -> list[str]:
    """Returns the distinct runs of an entry, in order."""
    return list(dict.fromkeys([*entry["runs"], *entry["serving"].values()]))


def cost_of(entries: Iterable[Record], done: Mapping[str, Record]) -> Cost | None:
    """Returns the cost of one seed, averaged over the seeds whose runs are all done; ``None`` without any."""
    full = [e for e in entries if e["serving"] and all(run in done for run in runs_of(e))]
    if not full:
        return None
    every = [_costs(runs_of(e), done) for e in full]
    serving = [_costs(dict.fromkeys(e["serving"].values()), done) for e in full]
    return Cost(
        {c.key: _mean(every if c.preparing else serving, c.key, c.merge) for c in columns.COSTS},
        runs=max(map(len, serving)),
        devices=", ".join(sorted({_device(cost) for costs in serving for cost in costs})),
    )


def _costs(runs: Iterable[str], done: Mapping[str, Record]) -> list[Record]:
    return [done[run].get("cost") or {} for run in runs]


def _mean(seeds: list[list[Record]], name: str, merge: Callable[[list[Any]], Any]) -> float | None:
    """Returns the mean over seeds of what one seed costs; ``None`` if any value is unknown."""
    values = [[cost.get(name) for cost in costs] for costs in seeds]
    if any(value is None for costs in values for value in costs):
        return None
    return sum(merge(costs) for costs in values) / len(values)


def _device(cost: Record) -> str:
    count = cost.get("devices", 1)
    threads = f" (threads: {cost['threads']})" if cost.get("device") == "cpu" and cost.get("threads") else ""
    return (f"{count} x " if count != 1 else "") + str(cost.get("device", "unknown")) + threads
