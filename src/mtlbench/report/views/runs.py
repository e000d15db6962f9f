"""The table of all runs: settings, costs, hardware, versions, failures; and how to repeat and cite a study."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtlbench.report import formatting
from mtlbench.report.columns import Part, TableColumn, grid
from mtlbench.report.model import Board
from mtlbench.report.reader import ReportInput

Record = Mapping[str, Any]

MOST = 2000
"""Longest table of runs in a page; those without a result come first."""

_SETTINGS = ("data", "model", "optimiser", "trainer", "labels")
"""Parts of a specification that say how a run was trained, besides its method."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: Run id.
        label: Row that planned it first.
        seed: Seed.
        state: ``done``, ``failed``, ``running``, ``stale`` or ``todo``.
        tasks: Tasks that it serves.
        settings: What not all runs share.
        result: Content of ``result.json``, empty if there is none.
        reason: Why there is no result.
    """

    name: str
    label: str
    seed: int
    state: str
    tasks: tuple[str, ...]
    settings: str
    result: Record
    reason: str = ""

    @property
    def cost(self) -> Record:
        """Costs of the run."""
        return self.result.get("cost") or {}


@dataclass(frozen=True)
class Runs:
    """All runs of a study.

    Attributes:
        common: Settings that all runs share, by name.
        grid: One line per run.
        note: What is left out; ``""`` if nothing is.
    """

    common: Mapping[str, str]
    grid: tuple[Part, ...]
    note: str


def _hardware(run: Run) -> str | None:
    cost = run.cost
    if not cost.get("device"):
        return None
    count = f"{cost['devices']} × " if cost.get("devices", 1) != 1 else ""
    threads = cost.get("threads") if cost["device"] == "cpu" else None
    return f"{count}{cost['device']}" + (f", {threads} thread{'s' if threads != 1 else ''}" if threads else "")


def _versions(run: Run) -> str | None:
    return ", ".join(f"{name} {version}" for name, version in (run.result.get("versions") or {}).items()) or None


COLUMNS = (
    TableColumn(head="run", value=lambda run: run.name, group="name", text=True),
    TableColumn(head="method", value=lambda run: run.label, text=True),
    TableColumn(head="seed", value=lambda run: run.seed),
    TableColumn(head="state", value=lambda run: run.state, text=True),
    TableColumn(head="tasks", value=lambda run: ", ".join(run.tasks) or None, text=True, tip="tasks that it serves"),
    TableColumn(head="steps", value=lambda run: run.result.get("steps"), show=formatting.whole),
    TableColumn(head="train", value=lambda run: run.cost.get("train_seconds"), show=formatting.duration, group="cost"),
    TableColumn(head="GiB", value=lambda run: run.cost.get("peak_memory_gib"), show=formatting.memory, group="cost"),
    TableColumn(head="hardware", value=_hardware, text=True, optional=True),
    TableColumn(head="versions", value=_versions, text=True, optional=True),
    TableColumn(
        head="settings",
        value=lambda run: run.settings or None,
        group="long",
        text=True,
        optional=True,
        tip="what not all runs share",
    ),
    TableColumn(head="reason", value=lambda run: run.reason or None, group="long", text=True, optional=True),
)


def all_runs(study: ReportInput, board: Board, specs: Mapping[str, Record]) -> Runs:
    """Returns every run of a study, those without a result first, and the settings that all of them share.

    Args:
        study: The study.
        board: Its table, which knows the runs without a result.
        specs: ``spec.json`` per run id.
    """
    flat = {run: dict(_flat(spec)) for run, spec in specs.items()}
    common = _common(list(flat.values()))
    own = {run: ", ".join(f"{k} {v}" for k, v in values.items() if k not in common) for run, values in flat.items()}
    problems = {p.run: p for p in board.problems if p.run}
    found: dict[str, Run] = {}
    for entry in study.plan["rows"]:
        for name in dict.fromkeys([*entry["runs"], *entry["serving"].values()]):
            if name in found:
                continue
            problem = problems.get(name)
            state = problem.state if problem else "done" if name in study.results else "todo"
            tasks = tuple(task for task, run in entry["serving"].items() if run == name)
            result = {} if problem else study.results.get(name, {})
            reason = formatting.shortened(problem.reason, 300) if problem else ""
            found[name] = Run(name, entry["label"], entry["seed"], state, tasks, own.get(name, ""), result, reason)
    ordered = sorted(found.values(), key=lambda run: run.state == "done")
    left = f"The table shows {MOST} of {len(ordered)} runs; study.json lists all." if len(ordered) > MOST else ""
    return Runs(common, grid(COLUMNS, ordered[:MOST]), left)


def _flat(spec: Record) -> Iterator[tuple[str, str]]:
    """Yields what a specification says about training, as dotted names and texts."""
    for part in _SETTINGS:
        yield from _leaves(part, spec.get(part) or {})
    yield from _leaves("", (spec.get("method") or {}).get("arguments") or {})


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), inner)
    else:
        yield name, formatting.shortened(str(value), 80)


def _common(every: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Returns the entries that all of several mappings have with the same value."""
    if not every:
        return {}
    first, *others = every
    return {name: text for name, text in first.items() if all(other.get(name) == text for other in others)}


def commands(plan: Record) -> str:
    """Returns the commands that train the study again and write this page."""
    commit, package = plan.get("commit"), plan.get("package", "")
    changed = "  # with uncommitted changes, which are not recorded" if plan.get("dirty") else ""
    code = f"git checkout {shlex.quote(str(commit))}{changed}" if commit else ""
    code = code or (f"pip install {shlex.quote(f'mtlbench=={package}')}" if package else "")
    suite = shlex.quote(str(plan["suite"]))
    words = ["mtlbench bench", suite, *(shlex.quote(str(text)) for text in plan.get("overrides", []))]
    return "\n".join(filter(None, [code, " ".join(words), f"mtlbench report {suite}"]))


def citation(plan: Record) -> str:
    """Returns the BibTeX entry of the software in the version that wrote the study."""
    year = str(plan.get("created", ""))[:4]
    lines = [
        "  title = {mtlbench: fair comparison of multi-task training methods}",
        "  author = {{The mtlbench contributors}}",
        *([f"  version = {{{plan['package']}}}"] if plan.get("package") else []),
        *([f"  year = {{{year}}}"] if year.isdigit() else []),
    ]
    return "@software{mtlbench,\n" + ",\n".join(lines) + "\n}"
