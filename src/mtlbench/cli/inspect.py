"""Commands that only look: status, report, methods, suites. They start without torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtlbench import registry
from mtlbench import suite as suites
from mtlbench.errors import StoreError, unknown_name
from mtlbench.runs.store import RunFolder, read_json


def states_of(root: Path, record: Mapping[str, Any]) -> dict[str, str]:
    """Returns the state of every run that a study names."""
    return {run_id: RunFolder(root, run_id).state() for row in record["rows"] for run_id in row["runs"]}


def study_of(results: Path, suite: str) -> tuple[Path, dict[str, Any]]:
    """Returns the folder and the record of a suite's current study.

    Raises:
        StoreError: If nothing was benched yet.
    """
    name = Path(suite).stem
    root = results / name
    record = read_json(root / "study.json")
    if record is None:
        if not Path(suite).suffix and name not in suites.available() and not root.exists():
            raise StoreError(unknown_name("suite", name, suites.available()))
        raise StoreError(f"There is no study of {name} in {results} yet. Start one: make bench SUITE={name}")
    return root, record


def status(results: Path, suite: str) -> int:
    """Prints the state of every run."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    root, record = study_of(results, suite)
    table = Table("method", "seed", "run", "tasks", "state", "progress", box=None, header_style="bold")
    states = states_of(root, record)
    users: dict[str, list[Mapping[str, Any]]] = {}
    for row in record["rows"]:
        for run_id in row["runs"]:
            users.setdefault(run_id, []).append(row)
    for run_id, (row, *others) in users.items():
        folder = RunFolder(root, run_id)
        spec = folder.spec()
        tasks = " ".join(spec.tasks if spec else record.get("run_tasks", {}).get(run_id, ()))
        label = row["label"] + (f" +{len(others)}" if others else "")
        cells = (label, str(row["seed"]), run_id, tasks, states[run_id], _detail(folder, states[run_id]))
        table.add_row(*map(escape, cells))
    console = Console()
    console.print(f"Suite {record['suite']} (version {record['version']}), {root}")
    console.print(table)
    if any(len(rows) > 1 for rows in users.values()):
        console.print("+n: n more rows use the run.")
    for run_id in users:
        if states[run_id] == "failed":
            console.print(escape(f"FAILED {run_id}: {_reason(RunFolder(root, run_id))}"))
    _show_stages(console, record, states)
    counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return 1 if "failed" in states.values() or _broken_off(record) else 0


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


def _broken_off(record: Mapping[str, Any]) -> list[str]:
    """Returns what stopped plans whose runs were done."""
    return [f"plan of {r['label']}, seed {r['seed']}: {r['error']}" for r in record["rows"] if r.get("error")]


def report(results: Path, suite: str) -> int:
    """Prints the leaderboard and writes its files."""
    root, _ = study_of(results, suite)
    return end_of_bench(root, unchanged=False)


def end_of_bench(root: Path, *, unchanged: bool) -> int:
    """Shows the leaderboard, writes its files unless nothing has changed, and returns the exit code."""
    from mtlbench import report as reports

    record = read_json(root / "study.json") or {"rows": []}
    states = states_of(root, record)
    files = [root / name for name in ("leaderboard.md", "leaderboard.csv", "leaderboard.tex", "report.html")]
    marker = root / ".reported"
    current = marker.exists() and marker.read_text() == record.get("key") and all(file.exists() for file in files)
    if not (unchanged and current):
        files = reports.write(root, states)
        marker.write_text(str(record.get("key")))
    reports.show(root, states)
    print("Written: " + ", ".join(str(path) for path in files))
    failed = [run_id for run_id, state in states.items() if state == "failed"]
    open_runs = [run_id for run_id, state in states.items() if state not in ("done", "failed")]
    for run_id in failed:
        error = RunFolder(root, run_id).error() or {}
        print(f"FAILED {run_id}: {error.get('type')}: {error.get('message')}", file=sys.stderr)
    broken = _broken_off(record)
    for line in broken:
        print(f"FAILED {line}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} run(s) failed; RETRY=1 (--retry) runs them again. Logs: {root / 'logs'}", file=sys.stderr)
    elif open_runs:
        print(f"{len(open_runs)} run(s) are not finished; the same command goes on.")
    return 1 if failed or broken else 0


def methods(name: str | None) -> int:
    """Prints all methods, or one with its documentation and hyper-parameters."""
    if name is None:
        for key, text in registry.shipped().items():
            print(f"{key:22} {text}")
        print("\nA method of your own: `methods: [my_module:MyMethod]`. More: mtlbench methods NAME")
        return 0
    cls = registry.find(name)
    print(f"{name} ({cls.__module__}:{cls.__name__})\n\n{cls.__doc__}\n")
    for key, parameter in registry.arguments_of(cls).items():
        print(f"  {key} = {parameter.default!r}")
    return 0


def list_suites() -> int:
    """Prints the shipped suites with their titles."""
    for name, title in suites.available().items():
        print(f"{name:14} {title}")
    return 0


def _detail(folder: RunFolder, state: str) -> str:
    if state == "failed":
        return ""
    progress = folder.progress()
    return f"{progress['step']}/{progress['steps']} steps" if "step" in progress else ""


def _reason(folder: RunFolder) -> str:
    error = folder.error() or {}
    first, _, _ = str(error.get("message", "")).partition("\n")
    return f"{error.get('type')}: {first}"
