"""Curves over training: one per label and quantity, averaged over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mtlbench.report.reader import ReportInput, read_metrics
from mtlbench.report.statistics import estimate
from mtlbench.report.tables.cost import runs_of
from mtlbench.report.tables.records import by_label

POINTS = 200
"""Most points of a curve in the page."""

Curves = dict[int, dict[int, float]]
"""Seed -> step -> value."""


@dataclass(frozen=True)
class Series:
    """Mean over seeds at the steps that all of them logged.

    Attributes:
        steps: Steps.
        mean: Mean over seeds.
        low: Mean minus sample standard deviation; the mean if there is one seed.
        high: Mean plus it.
        n: Seeds.
    """

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int


def read_series(study: ReportInput, labels: Collection[str] | None = None) -> dict[str, dict[str, Series]]:
    """Returns label -> quantity (``loss/...``, ``val/...``, ``gradient/...``) -> series.

    Args:
        study: The study.
        labels: Rows to read. Default: all, which takes long for thousands of runs.
    """
    rows = by_label(study.plan["rows"])
    # One row at a time, because the points of all seeds take much more memory than their mean.
    found = {label: _read(study, entries) for label, entries in rows.items() if labels is None or label in labels}
    return {label: series for label, series in found.items() if series}


def _read(study: ReportInput, entries: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    raw: dict[str, Curves] = defaultdict(lambda: defaultdict(dict))
    for entry in entries:
        for run in runs_of(entry):
            for row in read_metrics(study.folder / run):
                for name, value in row.items():
                    if _counts(name, run, entry["serving"]) and isinstance(value, int | float):
                        # A later line wins: a resumed run logs the steps since its checkpoint again.
                        raw[name][entry["seed"]][int(row["step"])] = float(value)
    return {name: s for name, curves in raw.items() if (s := _average(curves))}


def _counts(name: str, run: str, serving: dict[str, str]) -> bool:
    """Whether a quantity belongs to the row: of a task, only from the run that serves it."""
    group, _, rest = name.partition("/")
    if group in ("loss", "val"):
        return serving.get(rest.split("/")[0], run) == run
    return group in ("gradient", "experts") and run in (set(serving.values()) or {run})


def _average(curves: Curves) -> Series | None:
    steps = sorted(set.intersection(*(set(curve) for curve in curves.values())))
    steps = _thin(steps)
    if not steps:
        return None
    means = [estimate(curve[step] for curve in curves.values()) for step in steps]
    return Series(
        tuple(steps),
        tuple(m.mean for m in means),
        tuple(m.mean - (m.std or 0) for m in means),
        tuple(m.mean + (m.std or 0) for m in means),
        len(curves),
    )


def _thin(steps: list[int]) -> list[int]:
    stride = -(-len(steps) // POINTS) or 1
    return steps[::-1][::stride][::-1]  # from the end, so that the last step stays


def labels_with(series: Mapping[str, Mapping[str, Series]], name: str) -> Iterable[tuple[str, Series]]:
    """Yields the labels that logged a quantity."""
    return ((label, by_name[name]) for label, by_name in series.items() if name in by_name)
