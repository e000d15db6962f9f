"""A study as one JSON document: what the tables show, in full precision, and the records it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from typing import Any

from mtlbench.report.model import ConditionBoard, Leaderboard
from mtlbench.report.reader import ReportInput, read_specs
from mtlbench.report.references import references_of

FORMAT = 1
"""Raised when keys change their meaning."""


def to_json(study: ReportInput, board: Leaderboard | ConditionBoard) -> str:
    """Returns everything that is known about a study as JSON.

    ``board`` holds the tables: mappings by (task, protocol) are nested, task first, and ``estimate`` objects have
    ``mean``, ``std``, ``n``, ``low`` and ``high``. ``study`` is the record of the study, ``runs`` the results and
    specifications of its finished runs without local paths, ``references`` the papers of its methods.
    """
    specs = read_specs(study)
    runs = {
        run: {"result": result, "spec": {k: v for k, v in specs.get(run, {}).items() if k != "local"}}
        for run, result in study.results.items()
    }
    record = {
        "format": FORMAT,
        "suite": board.suite,
        "board": {"kind": "leaderboard" if isinstance(board, Leaderboard) else "conditions", **_plain(board)},
        "study": study.plan,
        "runs": runs,
        "errors": {run: {k: error.get(k) for k in ("type", "message")} for run, error in study.errors.items()},
        "references": {label: list(keys) for label, keys in references_of(study).items()},
    }
    return json.dumps(_finite(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Returns dataclasses, sets and mappings with tuples as keys as values of JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, item in value.items():
            if isinstance(key, tuple):
                found.setdefault(str(key[0]), {})[str(key[1])] = _plain(item)
            else:
                found[str(key)] = _plain(item)
        return found
    if isinstance(value, (frozenset, set)):
        return sorted((_plain(item) for item in value), key=str)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Decimal) else value


def _finite(value: Any) -> Any:
    """Returns a value of JSON with null for NaN and infinities, which JSON lacks."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
