"""``mtlbench status``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlbench.bench.executors import slurm
from mtlbench.cli import buckets
from mtlbench.cli.arguments import add_results, add_suite
from mtlbench.cli.stored import broken_off, failed_runs, study_of
from mtlbench.errors import ExitCode, coloured_output, inert
from mtlbench.runs import liveness
from mtlbench.runs.seal import is_sealed
from mtlbench.runs.store import RunFolder
from mtlbench.study.record import states_of

UNSEALED = "not sealed"
FOLDED = 16
"""Characters that a folded column keeps at least."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds suite and results folder."""
    add_suite(parser)
    add_results(parser)
    parser.add_argument(
        "--verify", action="store_true", help="read every file of the study's runs and compare it with its hash"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the state of every run, and with ``--verify`` every damaged file."""
    from rich.console import Console
    from rich.markup import escape

    buckets.fetched(arguments)
    root, record = study_of(Path(arguments.results), arguments.suite)
    states = states_of(root, record)
    console = Console(file=coloured_output())
    console.print(
        escape(f"Suite {record['suite']} (version {inert(str(record.get('version')))}), {inert(str(root))}"),
        soft_wrap=True,
    )
    _show_runs(console, root, record, states)
    for run_id, state in states.items():
        if state == "failed":
            console.print(escape(f"FAILED {run_id}: {_reason(RunFolder(root, run_id))}"), soft_wrap=True)
    _show_stages(console, record, states)
    counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()))
    if line := slurm.queue(root):
        console.print(escape(line), soft_wrap=True)
    faults = _verify(console, root, states) if arguments.verify else 0
    return ExitCode.FAILED if faults or failed_runs(record, states) or broken_off(record) else ExitCode.DONE


def _show_runs(console: Any, root: Path, record: Mapping[str, Any], states: Mapping[str, str]) -> None:
    """Prints one line per run; a run that several rows use has one line."""
    users: dict[str, list[Mapping[str, Any]]] = {}
    for row in record["rows"]:
        for run_id in row["runs"]:
            users.setdefault(run_id, []).append(row)
    lines = [("method", "seed", "run", "state", "progress", "tasks")]
    for run_id, (row, *others) in users.items():
        folder = RunFolder(root, run_id)
        spec = folder.spec()
        tasks = " ".join(spec.tasks if spec else record.get("run_tasks", {}).get(run_id, ()))
        label = row["label"] + (f" +{len(others)}" if others else "")
        lines.append((label, str(row["seed"]), run_id, states[run_id], _detail(folder, states[run_id]), tasks))
    _print_uncut(console, [[inert(cell) for cell in line] for line in lines])
    if any(len(rows) > 1 for rows in users.values()):
        console.print("+n: n more rows use the run.")
    if any(_unsealed(RunFolder(root, run_id)) for run_id in users):
        console.print(f"{UNSEALED}: written by a version that stored no digest, so a change to it cannot be noticed.")


def _print_uncut(console: Any, lines: Sequence[Sequence[str]]) -> None:
    """Print a table, its head first; only the last column is folded in a narrow terminal, so that ids can be copied."""
    from rich.cells import cell_len
    from rich.markup import escape
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for head in lines[0][:-1]:
        table.add_column(escape(head), no_wrap=True)
    table.add_column(escape(lines[0][-1]), overflow="fold")
    for line in lines[1:]:
        table.add_row(*map(escape, line))
    whole = Measurement.get(console, console.options.update(width=10_000), table).maximum
    if whole > console.width:
        last = max(cell_len(line[-1]) for line in lines)
        table.width = max(console.width, whole - max(0, last - FOLDED))
    console.print(table, crop=False)


def _verify(console: Any, root: Path, states: Mapping[str, str]) -> int:
    """Prints every fault of the files of a study, and returns their number."""
    from rich.markup import escape

    from mtlbench.runs.verify import faults_of

    faults = [fault for run_id in states for fault in faults_of(RunFolder(root, run_id))]
    for fault in faults:
        console.print(escape(inert(f"DAMAGED {fault}")), soft_wrap=True)
    console.print(f"Verified the files of {len(states)} runs: {len(faults) or 'no'} fault(s).")
    return len(faults)


def _show_stages(console: Any, record: Mapping[str, Any], states: Mapping[str, str]) -> None:
    """Prints how far every plan is that has several stages, or may have more."""
    from rich.markup import escape
    from rich.table import Table

    from mtlbench.report.tables import stages

    table = Table("method", "seed", "stage", "runs", box=None, header_style="bold")
    for row in record["rows"]:
        if stages.shown(row):
            name = " ".join([row["label"], *filter(None, [row.get("condition")])]), str(row["seed"])
            lines = [stages.counted(runs, states) for runs in stages.stages_of(row)]
            lines += filter(None, [stages.ahead(row, states)])
            for number, line in enumerate(lines, start=1):
                table.add_row(*map(escape, (*name, str(number), line)))
    if table.row_count:
        console.print("Plans by stage")
        console.print(table)


def _detail(folder: RunFolder, state: str) -> str:
    if state == "failed":
        return ""
    if state == "done":
        return UNSEALED if _unsealed(folder) else ""
    progress = folder.progress()
    steps = f"{progress['step']}/{progress['steps']} steps" if {"step", "steps"} <= set(progress) else ""
    host = str(progress.get("host", "")).partition("/")[0]
    elsewhere = state == "running" and progress.get("host") != liveness.machine()
    return " ".join(filter(None, [steps, f"on {host}" if elsewhere and host else ""]))


def _unsealed(folder: RunFolder) -> bool:
    return (result := folder.result()) is not None and not is_sealed(result)


def _reason(folder: RunFolder) -> str:
    error = folder.error() or {}
    first, _, _ = str(error.get("message", "")).partition("\n")
    return f"{error.get('type', 'Error')}: {first}"
