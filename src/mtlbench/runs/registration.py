"""The pre-registered comparison of a study: when it was named, and how often its outcome was looked at.

``registration.json`` in a results folder is only ever appended to. The bench writes there, before the first run
starts, which two rows the suite compares. A report adds a *look* whenever it shows results that no earlier report
showed. Needs no torch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlbench.errors import StoreError, inert
from mtlbench.runs import shapes
from mtlbench.runs.store import exclusive, read_json, write_json

FILE = "registration.json"


@dataclass(frozen=True)
class Registration:
    """What the store knows about the comparison that a suite names.

    Attributes:
        pair: Labels of the row and of its reference.
        when: When it was written down; ``""`` if it never was.
        runs: Runs of the study that were finished by then.
    """

    pair: tuple[str, str]
    when: str = ""
    runs: int = 0

    @property
    def confirmatory(self) -> bool:
        """Whether the pair was named before any run of the study existed."""
        return bool(self.when) and self.runs == 0

    def __str__(self) -> str:
        pair = f"{self.pair[0]} against {self.pair[1]}"
        if self.confirmatory:
            return f"{pair}, named {self.when}, before the first run"
        if self.when:
            return f"{pair}: exploratory, since it was named after {self.runs} runs existed ({self.when})"
        return f"{pair}: exploratory, since no record says that it was named before its runs"


def register(root: Path, study: Mapping[str, Any], finished: int) -> None:
    """Write down which comparison a study names, unless the last entry of this version of the suite says the same.

    Args:
        root: ``results/<suite>``.
        study: Record of the study.
        finished: Runs of the study that are finished.
    """
    pair = list(study.get("named") or ())
    version = study.get("version")
    root.mkdir(parents=True, exist_ok=True)
    with exclusive(root):
        record = _read(root)
        last = _last(record, version)
        if pair == (last["pair"] if last else []):
            return
        entry = {"pair": pair, "version": version, "key": study.get("key"), "when": _now(), "runs": finished}
        write_json(root / FILE, {**record, "named": [*record["named"], entry]})


def registration_of(root: Path, study: Mapping[str, Any]) -> Registration | None:
    """Returns what is known about the comparison that a study names, or None if it names none."""
    named = list(study.get("named") or [])
    if len(named) != 2:
        return None
    pair = (str(named[0]), str(named[1]))
    last = _last(_read(root), study.get("version"))
    if last is None or list(last["pair"]) != list(pair):
        return Registration(pair)
    return Registration(pair, str(last.get("when", "")), int(last.get("runs", 0)))


def look(root: Path, runs: Collection[str]) -> int:
    """Count a look at the results of some runs, and return the number of looks so far, at least 1.

    Results that earlier reports showed make no new look. If the folder cannot be written, the look still counts for
    this report.

    Args:
        root: ``results/<suite>``.
        runs: The runs whose results decide the comparison.
    """
    wanted = set(runs)
    earlier = [set(entry["runs"]) for entry in _read(root)["looks"] if wanted & set(entry["runs"])]
    if wanted <= set().union(*earlier):
        return max(1, len(earlier))
    with contextlib.suppress(OSError, StoreError), exclusive(root):
        record = _read(root)
        write_json(root / FILE, {**record, "looks": [*record["looks"], {"runs": sorted(wanted), "when": _now()}]})
    return len(earlier) + 1


def _last(record: Mapping[str, Any], version: Any) -> dict[str, Any] | None:
    entries = [entry for entry in record["named"] if entry["version"] == version]
    return entries[-1] if entries else None


def _read(root: Path) -> dict[str, Any]:
    """Returns the file's content; entries of another form are left out."""
    record = inert(read_json(root / FILE)) or {}
    return {
        "format": 1,
        "named": _sound(record.get("named"), shapes.NAMED),
        "looks": _sound(record.get("looks"), shapes.LOOK),
    }


def _sound(entries: Any, shape: shapes.Shape) -> list[dict[str, Any]]:
    return [entry for entry in entries if shape(entry)] if isinstance(entries, list) else []


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
