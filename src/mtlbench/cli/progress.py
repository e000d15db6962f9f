"""Progress of a bench: a live table in a terminal, lines elsewhere, with running runs, steps and time left."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from mtlbench.errors import coloured_output
from mtlbench.runs.store import RunFolder

if TYPE_CHECKING:
    from mtlbench.bench.scheduler import Bench
    from mtlbench.runs.spec import RunSpec
    from mtlbench.study.resolve import Study

LINE_EVERY_S = 20.0
"""Maximum seconds between progress lines if the output is no terminal; every run that ends also has a line."""


def print_plan(bench: Bench, jobs: int, threads: int) -> None:
    """Print the number of runs in each state."""
    states = list(bench.states().values())
    counts = ", ".join(f"{states.count(s)} {w}" for s, w in _WORDS.items() if states.count(s))
    print(f"{len(states)} runs: {counts}. {jobs} at once, {threads} thread(s) each. Results: {bench.root}", flush=True)


def print_doubts(study: Study) -> None:
    """Print what the user should know before the study runs."""
    for doubt in study.doubts:
        print(f"Warning: {doubt}", file=sys.stderr, flush=True)


_WORDS = {"done": "done", "running": "running elsewhere", "stale": "to resume", "failed": "failed", "todo": "to do"}


class Progress:
    """Shows a bench while it runs."""

    def __init__(self) -> None:
        self.console = Console(file=coloured_output())
        self.started = time.monotonic()
        self.shown: float = 0.0
        self.work_at_start: float | None = None
        self.told: set[str] | None = None
        terminal = self.console.is_terminal
        self.live = Live(console=self.console, refresh_per_second=2, transient=True) if terminal else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    def update(self, bench: Bench) -> None:
        """Show the state of a bench; cheap enough to be called several times a second."""
        if self.live and not self.live.is_started:
            self.live.start()
        ended = [] if self.live else self._ended(bench)
        period = 0.5 if self.live else LINE_EVERY_S
        if not ended and time.monotonic() - self.shown < period:
            return
        self.shown = time.monotonic()
        rows, share = self._rows(bench)
        left = self._left(share)
        states = list(bench.states().values())
        head = f"{states.count('done')}/{len(states)} runs done"
        head += f", {states.count('failed')} failed" if "failed" in states else ""
        if self.live:
            self.live.update(self._table(f"{head}, {left}", rows))
        else:
            running = [f"{label} {step}/{steps}" for label, step, steps in rows]
            print(f"[{head}, {left}] {'; '.join([*ended, *running])}", flush=True)

    def _ended(self, bench: Bench) -> list[str]:
        """Return the runs that ended since the last call; none on the first call, which finds earlier work."""
        states = bench.states()
        every = {run_id for run_id, state in states.items() if state in ("done", "failed")}
        new = every - (every if self.told is None else self.told)
        self.told = every
        specs = bench.specs()
        return [f"{_name(specs[run_id])} {states[run_id]}" for run_id in sorted(new)]

    def _rows(self, bench: Bench) -> tuple[list[tuple[str, int, int]], float]:
        """Returns label, step and steps of running runs, and the share of all work that is done."""
        rows, done = [], 0.0
        specs = bench.specs()
        for run_id, spec in specs.items():
            state = bench.state(run_id)
            if state in ("done", "failed"):
                done += 1
            elif state == "running":
                step, steps = RunFolder(bench.root, run_id).progress().get("step", 0), int(spec.trainer["steps"])
                rows.append((_name(spec), step, steps))
                done += step / max(1, steps)
        return rows, done / max(1, len(specs))

    def _left(self, share: float) -> str:
        if self.work_at_start is None:
            self.work_at_start = share
        gained, spent = share - self.work_at_start, time.monotonic() - self.started
        if gained < 0.01:
            return "time left not known yet"
        seconds = spent / gained * (1 - share)
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"

    def _table(self, title: str, rows: list[tuple[str, int, int]]) -> Table:
        table = Table(title=escape(title), title_justify="left", box=None, show_header=False)
        for label, step, steps in rows:
            filled = int(30 * step / max(1, steps))
            table.add_row(escape(label), "█" * filled + "·" * (30 - filled), f"{step}/{steps}")
        return table


def _name(spec: RunSpec) -> str:
    only = f" [{next(iter(spec.tasks))}]" if len(spec.tasks) == 1 else ""
    return f"{spec.label}{only} s{spec.seed}"
