"""Reads the input of a report: the plan of a study and the files of its runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlbench.errors import StoreError, inert
from mtlbench.runs import shapes
from mtlbench.runs.store import RunFolder, read_json
from mtlbench.study.record import fault_of

FORMAT = 1
"""Supported format of ``study.json`` and ``result.json``."""


@dataclass(frozen=True)
class ReportInput:
    """The files of a results folder as plain records.

    Attributes:
        folder: ``results/<suite>``.
        plan: ``study.json``.
        results: ``result.json`` per run id, where it is whole.
        errors: Why a run failed, per run id.
    """

    folder: Path
    plan: dict[str, Any]
    results: dict[str, dict[str, Any]]
    errors: dict[str, dict[str, Any]]


def read_plan(folder: Path) -> dict[str, Any]:
    """Reads ``study.json`` of a results folder.

    Raises:
        StoreError: If it holds no study, or one of another format or version.
    """
    path = folder / "study.json"
    if not path.is_file():
        raise StoreError(f"A report needs a study. {path} does not exist. Run the suite first: make bench SUITE=...")
    plan = read_json(path)
    if plan is None or plan.get("format") != FORMAT:
        found = "no JSON" if plan is None else f"format {inert(plan.get('format'))!r}"
        raise StoreError(f"{path} must have format {FORMAT}. Found {found}. Run the suite again to write it anew.")
    if "study" in plan:
        raise StoreError(
            f"{path} must name what varies under 'scenario'. Found the key 'study' of an earlier version. Run the "
            "bench again to write it anew."
        )
    needed = {"suite", "rows", "baseline", "selection", "split", "search", "seeds", "tasks"}
    if (fault := fault_of(plan)) or needed - plan.keys():
        reason = fault or "it lacks entries"
        raise StoreError(
            f"{path} must be as a bench writes it. It is damaged: {reason}. Run the suite again to write it anew."
        )
    return inert(plan)


def read_input(folder: Path) -> ReportInput:
    """Reads a results folder.

    Raises:
        StoreError: See `read_plan`.
    """
    plan = read_plan(folder)
    runs = dict.fromkeys(run for e in plan["rows"] for run in [*e["runs"], *e["serving"].values()])
    folders = {run: RunFolder(folder, run) for run in runs}
    results = {run: inert(record) for run, each in folders.items() if (record := each.result())}
    errors = {run: record for run, each in folders.items() if (record := each.error())}
    sound = {r: x for r, x in results.items() if x.get("format") == FORMAT and x.get("scores")}
    return ReportInput(folder, plan, sound, errors)


def read_specs(study: ReportInput) -> dict[str, dict[str, Any]]:
    """Reads ``spec.json`` of every run with a result."""
    folders = {run: RunFolder(study.folder, run) for run in study.results}
    return {run: inert(spec.to_json()) for run, folder in folders.items() if (spec := folder.spec())}


def read_metrics(run: Path) -> Iterator[dict[str, Any]]:
    """Yields the numbers of every row of ``metrics.jsonl``; a killed run leaves an incomplete line, which is no row."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if shapes.record({"step": shapes.whole})(row):
            yield {key: value for key, value in row.items() if shapes.number(value)}


def read_summary(study: ReportInput, run: str) -> dict[str, Any]:
    """Returns ``summary.json``, which the method of a run wrote, without parts of another shape than figures need.

    It is empty if there is none, or if the result that it belongs to is not whole.
    """
    found = (inert(read_json(study.folder / run / "summary.json")) or {}) if run in study.results else {}
    needed = {"experts": shapes.EXPERTS, "sharing": shapes.SHARING, "regimes": shapes.REGIMES}
    return {key: value for key, value in found.items() if key not in needed or needed[key](value)}
