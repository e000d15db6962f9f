"""The stages of a plan, from the records of a study: how far each is, and what a failed run keeps from happening."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

WORDS = {"done": "done", "running": "running", "stale": "to resume", "failed": "failed", "todo": "to do"}
"""State of a run, and how it is counted."""


def stages_of(entry: Record) -> list[list[str]]:
    """Returns the runs of every stage that the plan of an entry has come to."""
    whole = [list(entry["runs"])] if entry["runs"] else []
    return entry.get("stages") or whole


def shown(entry: Record) -> bool:
    """Whether the stages of an entry tell more than its runs: there are several, or more may follow.

    Most methods have a plan of one run of their own. Until it is done nothing in the files says that none follows,
    but then there is nothing to tell either.
    """
    stages = stages_of(entry)
    if len(stages) != 1 or entry.get("error"):
        return bool(stages)
    own = f"{entry['method']}-s{entry['seed']}-"
    plain = len(stages[0]) == 1 and stages[0][0].startswith(own)
    return not (entry["serving"] or plain)


def counted(runs: Sequence[str], states: Mapping[str, str]) -> str:
    """Returns how many runs of a stage are in which state."""
    found = [states.get(run, "todo") for run in runs]
    return ", ".join(f"{found.count(state)} {word}" for state, word in WORDS.items() if state in found)


def ahead(entry: Record, states: Mapping[str, str]) -> str:
    """Returns what is to be said of the stage after the last known one; ``""`` where the plan has ended."""
    stages = stages_of(entry)
    if entry["serving"] or not stages:
        return ""
    if entry.get("error"):
        return f"failed: {entry['error']}"
    failed = [run for run in stages[-1] if states.get(run) == "failed"]
    if failed:
        return f"failed: what follows depends on {', '.join(failed)}, which failed"
    return f"known when stage {len(stages)} is done"


def consequence(entry: Record, run: str) -> str:
    """Returns what does not happen because a run of an entry failed; ``""`` where nothing follows it."""
    if entry["serving"] or not shown(entry):
        return ""
    stage = next((i for i, runs in enumerate(stages_of(entry), start=1) if run in runs), 0)
    return f" (stage {stage} of the plan of {entry['label']}; what depends on it is not run)" if stage else ""
