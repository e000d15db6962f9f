"""``mtlbench report``, and the leaderboard at the end of ``mtlbench bench``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlbench.cli import buckets
from mtlbench.cli.arguments import add_results, add_suite
from mtlbench.cli.output import may_be_cut
from mtlbench.cli.stored import broken_off, failed_runs, study_of
from mtlbench.errors import ExitCode
from mtlbench.runs.store import RunFolder, read_json, write_text
from mtlbench.study import costs
from mtlbench.study.record import states_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds suite and results folder."""
    add_suite(parser)
    add_results(parser)
    parser.add_argument(
        "--against", default="", metavar="ROW", help="row to compute intervals against (default: baseline)"
    )
    parser.add_argument(
        "--format",
        choices=("latex", "markdown", "json", "bibtex"),
        help="print one format and write no files: latex (table for a paper), markdown (comparison), "
        "json (everything), bibtex (papers of the methods)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the leaderboard and writes its files; with ``--format`` it prints one format and writes nothing."""
    buckets.fetched(arguments)
    root, record = study_of(Path(arguments.results), arguments.suite)
    if arguments.format:
        return _print_text(root, record, arguments.format, arguments.against)
    return end_of_bench(root, unchanged=False, against=arguments.against)


def end_of_bench(root: Path, *, unchanged: bool, against: str = "") -> int:
    """Shows the leaderboard, writes its files unless nothing has changed, and returns the exit code."""
    from mtlbench import report as reports

    record = read_json(root / "study.json") or {"rows": []}
    states = states_of(root, record)
    files = [root / name for name in ("leaderboard.md", "leaderboard.csv", "leaderboard.tex", "report.html")]
    marker = root / ".reported"
    reported = marker.read_text(errors="replace") if marker.exists() else None
    stamp = _stamp(root, record)
    current = reported == stamp and all(file.exists() for file in files)
    if not (unchanged and current):
        marker.unlink(missing_ok=True)  # After a kill some files are old and some are new.
        files = reports.write(root, states, against)
        # A page that lists failures is written again even if their files have only been put back.
        finished = set(states.values()) == {"done"} and not against
        write_text(marker, stamp if finished else "")
    failed = failed_runs(record, states)
    broken = broken_off(record)
    with may_be_cut():
        reports.show(root, states, against=against)
        print("Written: " + ", ".join(str(path) for path in files))
        _print_unfinished(root, states, failed, broken)
    return ExitCode.FAILED if failed or broken else ExitCode.DONE


def _print_text(root: Path, record: Mapping[str, Any], form: str, against: str) -> int:
    """Prints a report in one format alone on standard output, problems on standard error; returns the exit code."""
    from mtlbench import report as reports

    states = states_of(root, record)
    text = reports.text(*reports.load(root, states, against), form)
    failed, broken = failed_runs(record, states), broken_off(record)
    with contextlib.redirect_stdout(sys.stderr):
        _print_unfinished(root, states, failed, broken)
    with may_be_cut():
        print(text, end="")
    return ExitCode.FAILED if failed or broken else ExitCode.DONE


def _stamp(root: Path, record: Mapping[str, object]) -> str:
    """Returns what the files of a report were made from: the study, and the costs that were measured beside it."""
    return " ".join([str(record.get("key")), *(entry["created"] for entry in costs.read(root).values())])


def _print_unfinished(root: Path, states: Mapping[str, str], failed: Sequence[str], broken: Sequence[str]) -> None:
    """Prints what failed, broke off, or has not ended."""
    for run_id in failed:
        error = RunFolder(root, run_id).error() or {}
        print(f"FAILED {run_id}: {error.get('type')}: {error.get('message')}", file=sys.stderr)
    for line in broken:
        print(f"FAILED {line}", file=sys.stderr)
    open_runs = [run_id for run_id, state in states.items() if state not in ("done", "failed")]
    if failed:
        print(f"{len(failed)} run(s) failed; RETRY=1 (--retry) runs them again. Logs: {root / 'logs'}", file=sys.stderr)
    elif open_runs:
        print(f"{len(open_runs)} run(s) are not finished; the same command continues.")
