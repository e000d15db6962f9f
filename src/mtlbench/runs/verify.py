"""Reads every file of a run and compares it with what was written. Needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from mtlbench.runs import seal
from mtlbench.runs.store import RunFolder, read_json

ANEW = "Put back a copy, or delete the run's folder and run the bench again, which trains the run anew."


def faults_of(run: RunFolder) -> Iterator[str]:
    """Yields every fault of a run's files, each with its remedy; nothing if there is no such run."""
    if damage := run.damage():
        yield run.told(damage)
    result = run.result()
    if result is not None:
        yield from _faults_of_result(run, result)
    if run.path.is_dir() and run.spec() is None and (result is not None or any(run.path.glob("*.ckpt"))):
        yield f"{run.path / 'spec.json'} is absent or damaged. Run the bench again, which writes it anew."
    error = run.path / "error.json"
    if os.path.lexists(error) and read_json(error) is None:
        yield f"{error} is damaged, so the reason of the failure is lost. Run the bench with --retry (RETRY=1)."
    for path in sorted([*run.path.glob("step-*.ckpt"), *run.path.glob("best.ckpt")]):
        if not seal.matches(path):
            remedy = "The run resumes from an older checkpoint or starts anew; delete the file."
            yield f"{path} does not match its sha256. {remedy}"


def _faults_of_result(run: RunFolder, result: dict[str, object]) -> Iterator[str]:
    for fault in seal.files_faults(result, run.path, deep=True):
        yield f"{run.path}: {fault}. {ANEW}"
    weights = run.path / "final.ckpt"
    if not seal.is_sealed(result) and weights.exists() and not seal.matches(weights):
        yield f"{weights} does not match its sha256. {ANEW}"
    if lost := _unreadable_rows(run):
        yield f"{run.path / 'metrics.jsonl'}: {lost} row(s) cannot be read, and the page leaves them out. {ANEW}"


def _unreadable_rows(run: RunFolder) -> int:
    lost = 0
    try:
        lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    for line in lines:
        try:
            lost += not isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            lost += 1
    return lost
