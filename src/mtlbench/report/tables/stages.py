"""The progress of each stage of a plan, and which runs a failure prevents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

WORDS = {"done": "done", "running": "running", "stale": "to resume", "failed": "failed", "todo": "to do"}
"""Name of each run state in counts."""


def stages_of(entry: Record) -> list[list[str]]:
    """Returns the runs of every stage that a plan has reached."""
    whole = [list(entry["runs"])] if entry["runs"] else []
    return entry.get("stages") or whole


def shown(entry: Record) -> bool:
    """Whether to show the stages of an entry: there are several, or more may follow.

    Most methods have a plan of a single run. Until it is done, the files do not say whether another follows, but there
    is nothing to show either.
    """
    stages = stages_of(entry)
    if len(stages) != 1 or entry.get("error"):
        return bool(stages)
    own = f"{entry['method']}-s"  # All seeds may share one run.
    plain = len(stages[0]) == 1 and stages[0][0].startswith(own)
    return not (entry["serving"] or plain)


def counted(runs: Sequence[str], states: Mapping[str, str]) -> str:
    """Counts the runs of a stage by state."""
    found = [states.get(run, "todo") for run in runs]
    return ", ".join(f"{found.count(state)} {word}" for state, word in WORDS.items() if state in found)


def ahead(entry: Record, states: Mapping[str, str]) -> str:
    """Describes the stage after the last known one; ``""`` if the plan has ended."""
    stages = stages_of(entry)
    if entry["serving"] or not stages:
        return ""
    if entry.get("error"):
        return f"failed: {entry['error']}"
    trials = entry.get("trials") or ()
    failed = [run for run in stages[-1] if states.get(run) == "failed" and run not in trials]
    if failed:
        return f"failed: the next stage depends on {', '.join(failed)}, which failed"
    return f"known when stage {len(stages)} is done"


def consequence(entry: Record, run: str) -> str:
    """Describes what a failed run prevents; ``""`` if nothing depends on it."""
    if entry["serving"] or not shown(entry):
        return ""
    stage = next((i for i, runs in enumerate(stages_of(entry), start=1) if run in runs), 0)
    return f" (stage {stage} of the plan of {entry['label']}; runs that depend on it are not started)" if stage else ""
