"""Logs the end of a bench to tracking tools: a run per row and seed, one per trial, and the summary of the study."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from mtlbench.report import load
from mtlbench.report.dashboard.content import Tracked, study_runs
from mtlbench.runs.store import write_text
from mtlbench.tracking.others import wanted
from mtlbench.tracking.tracker import Tracker
from mtlbench.tracking.wandb_client import wandb_mode

MARKER = ".mirrored"
"""File in the results folder: what was logged last to W&B, and how. Other tools have files that end with their name."""


def mirror(root: Path, states: Mapping[str, str]) -> int:
    """Log the end of a bench if W&B is on and something has changed, and return how many runs were logged.

    After any trouble with a server the rest is logged offline, so that no run waits for it again.

    Args:
        root: ``results/<suite>``.
        states: State per run id.
    """
    mode = wandb_mode()
    if mode == "disabled":
        return 0
    study, board = load(root, states)
    runs = study_runs(study, board, root / "report.html")
    stamp, marker = f"{mode} {_stamp(runs)}", root / MARKER
    if len(runs) == 1 or (marker.exists() and marker.read_text(errors="replace") == stamp):
        return 0
    for run in runs:
        tracker = _log(run, root, mode)
        if tracker.lost and mode == "online":  # Whether the server has any of it is not known.
            tracker = _log(run, root, tracker.mode)
        mode = tracker.mode
    write_text(marker, f"{mode} {_stamp(runs)}")
    return len(runs)


def mirror_others(root: Path, states: Mapping[str, str]) -> dict[str, int]:
    """Log the end of a bench to the tools that ``MTLBENCH_TRACK`` names, and return how many runs each has received.

    A tool that has failed, or for which nothing has changed, is left out.

    Args:
        root: ``results/<suite>``.
        states: State per run id.
    """
    if not wanted():
        return {}
    study, board = load(root, states)
    runs = study_runs(study, board, root / "report.html")
    stamp, found = _stamp(runs), {}
    for name in wanted() if len(runs) > 1 else ():
        marker = root / f"{MARKER}-{name}"
        if marker.exists() and marker.read_text(errors="replace") == stamp:
            continue
        if all(_log_to(name, run, root) for run in runs):
            write_text(marker, stamp)
            found[name] = len(runs)
    return found


def _log_to(name: str, run: Tracked, root: Path) -> bool:
    tracker = Tracker(run.about, root, others=[name], mode="disabled")
    tracker.finish(run.ending)
    return not tracker.failed


def _log(run: Tracked, root: Path, mode: str) -> Tracker:
    tracker = Tracker(run.about, root, others=(), mode=mode)
    tracker.finish(run.ending)
    return tracker


def _stamp(runs: list[Tracked]) -> str:
    said = [[run.about.id, dict(run.ending.summary), [t.rows for t in run.ending.tables.values()]] for run in runs]
    return hashlib.sha256(json.dumps(said, default=str).encode()).hexdigest()
