"""Reads the input of a report: the plan of a study and the files of its runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlbench.errors import StoreError, inert
from mtlbench.runs import shapes
from mtlbench.runs.store import read_json

FORMAT = 1
"""Supported format of ``study.json`` and ``result.json``."""


@dataclass(frozen=True)
class ReportInput:
    """The files of a results folder as plain records.

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


def read_input(folder: Path) -> ReportInput:
    """Reads a results folder.

    Raises:
        StoreError: If it holds no study, or one of another format or version.
    """
    path = folder / "study.json"
    if not path.is_file():
        raise StoreError(f"A report needs a study. {path} does not exist. Run the suite first: make bench SUITE=...")
    plan = inert(read_json(path))
    if plan is None or plan.get("format") != FORMAT:
        found = "no JSON" if plan is None else f"format {plan.get('format')!r}"
        raise StoreError(f"{path} must have format {FORMAT}. Found {found}. Run the suite again to write it anew.")
    if "study" in plan:
        raise StoreError(
            f"{path} must name what varies under 'scenario'. Found the key 'study' of an earlier version. Run the "
            "bench again to write it anew."
        )
    needed = {"suite", "rows", "baseline", "selection", "split", "search", "seeds", "tasks"}
    if not shapes.STUDY(plan) or needed - plan.keys():
        raise StoreError(f"{path} must be as a bench writes it. It is damaged. Run the suite again to write it anew.")
    runs = dict.fromkeys(run for e in plan["rows"] for run in [*e["runs"], *e["serving"].values()])
    results = {run: record for run in runs if (record := inert(read_json(folder / run / "result.json")))}
    errors = {run: record for run in runs if (record := inert(read_json(folder / run / "error.json")))}
    sound = {r: x for r, x in results.items() if x.get("format") == FORMAT and x.get("scores") and shapes.RESULT(x)}
    return ReportInput(folder, plan, sound, errors)


def read_specs(study: ReportInput) -> dict[str, dict[str, Any]]:
    """Reads ``spec.json`` of every run with a result."""
    found = {run: inert(read_json(study.folder / run / "spec.json")) for run in study.results}
    return {run: spec for run, spec in found.items() if shapes.SPEC(spec)}


def read_metrics(run: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of ``metrics.jsonl``; skips a line that a killed run left incomplete."""
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


def read_summary(study: ReportInput, run: str) -> dict[str, Any]:
    """Returns ``summary.json``, which the method of a run wrote, without parts of another shape than figures need."""
    found = inert(read_json(study.folder / run / "summary.json")) or {}
    needed = {"experts": shapes.EXPERTS, "sharing": shapes.SHARING}
    return {key: value for key, value in found.items() if key not in needed or needed[key](value)}
