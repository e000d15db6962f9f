"""Reads the files of a study: its plan, and what its runs left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlbench.errors import StoreError

FORMAT = 1
"""The only format of ``study.json`` and ``result.json`` that is understood."""


@dataclass(frozen=True)
class Study:
    """A results folder, read.

    Attributes:
        folder: ``results/<suite>``.
        plan: ``study.json``.
        results: ``result.json`` per run id.
        errors: ``error.json`` per run id.
    """

    folder: Path
    plan: dict[str, Any]
    results: dict[str, dict[str, Any]]
    errors: dict[str, dict[str, Any]]


def read_study(folder: Path) -> Study:
    """Reads a results folder.

    Raises:
        StoreError: If there is no study in it, or one of another format.
    """
    path = folder / "study.json"
    if not path.is_file():
        raise StoreError(f"A report needs a study. There is no {path}. Run the suite first: make bench SUITE=...")
    plan = _record(path)
    if plan is None or plan.get("format") != FORMAT:
        found = "no JSON" if plan is None else f"format {plan.get('format')!r}"
        raise StoreError(f"{path} must have format {FORMAT}. Found {found}. Run the suite again to write it anew.")
    if "study" in plan:  # The key of earlier versions.
        plan["scenario"] = plan.pop("study")
    runs = dict.fromkeys(run for e in plan["rows"] for run in [*e["runs"], *e["serving"].values()])
    results = {run: record for run in runs if (record := _record(folder / run / "result.json"))}
    errors = {run: record for run in runs if (record := _record(folder / run / "error.json"))}
    return Study(folder, plan, {r: x for r, x in results.items() if x.get("format") == FORMAT}, errors)


def read_metrics(run: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of ``metrics.jsonl``; a line that a killed run left half-written is passed over."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "step" in row:
            yield row


def read_summary(study: Study, run: str) -> dict[str, Any]:
    """Returns what the method of a run told of it, ``summary.json``; empty where there is none."""
    return _record(study.folder / run / "summary.json") or {}


def _record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
