"""The record of a study, ``study.json``: whether it is whole, and where it is stored. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtlbench.runs import seal, shapes
from mtlbench.runs.store import RunFolder, read_json, write_json


def fault_of(record: Mapping[str, Any]) -> str:
    """Return what is wrong with the content of a file as the record of a study, or ``""``."""
    if seal.broken(record):
        return "its content does not match its digest: something changed it after it was written"
    if not shapes.STUDY(record):
        return "its values are not of the kinds that a study has"
    return "named must be a pair of rows" if len(record.get("named") or "ab") != 2 else ""


def states_of(root: Path, record: Mapping[str, Any]) -> dict[str, str]:
    """Returns the state of every run that a study names."""
    return {run_id: RunFolder(root, run_id).state() for row in record["rows"] for run_id in row["runs"]}


def recall(folder: Path, key: str) -> dict[str, Any] | None:
    """Returns the stored record of a study with this key, if its plans had ended; None if it is damaged."""
    record = read_json(folder / "studies" / f"{key}.json")
    return record if record and not fault_of(record) and all(row["serving"] for row in record["rows"]) else None


def remember(folder: Path, record: Mapping[str, Any]) -> None:
    """Stores a study's record, sealed, as the current one and under its key."""
    (folder / "studies").mkdir(parents=True, exist_ok=True)
    sealed = seal.sealed(record)
    write_json(folder / "studies" / f"{record['key']}.json", sealed)
    write_json(folder / "study.json", sealed)
