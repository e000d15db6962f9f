"""A bench of 40 runs that need no training: ``python -m tests.support.array_job ROOT``. Needs no torch.

The runs are claimed, last a moment and are finished by this process. ``ROOT/trained`` gets a line for each.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtlbench.bench import scheduler
from mtlbench.bench.executors.base import Executor
from mtlbench.errors import ExitCode
from mtlbench.runs.plan import Case, one_run
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from mtlbench.study.resolve import Study

RUNS = [
    RunSpec("mine", "uniform", seed, {"name": "uniform"}, {"a": {}}, {}, {}, {}, {"steps": 1}) for seed in range(40)
]


class Lasting(Executor):
    """Finishes one run after the other, each after a moment in which its process may be killed."""

    def __init__(self, root: Path):
        self.root, self.current = root, []

    @property
    def free(self) -> bool:
        return not self.current

    @property
    def running(self) -> list[str]:
        return [spec.run_id for spec, *_ in self.current]

    def start(self, spec: RunSpec) -> None:
        self.current.append((spec, RunFolder(self.root, spec.run_id).claim(spec), time.monotonic() + 0.1))

    def ended(self) -> Iterator[tuple[RunSpec, int]]:
        for spec, ours, due in self.current:
            if ours and time.monotonic() < due:
                continue
            self.current.clear()
            if ours:
                with (self.root / "trained").open("a") as file:
                    file.write(f"{spec.seed}\n")
                RunFolder(self.root, spec.run_id).finish({"hash": spec.hash})
            yield spec, ExitCode.DONE if ours else ExitCode.NOT_OURS

    def stop(self) -> None:
        for spec, ours, _ in self.current:
            if ours:
                RunFolder(self.root, spec.run_id).release()


def study() -> Study:
    """Returns the study, whose runs need no method and no data."""
    return Study(
        {"rows": [{} for _ in RUNS]}, [Case(spec, plan=lambda method_plan, s=spec: one_run(s)) for spec in RUNS]
    )


def main() -> int:
    """Runs the bench to its end, or until it is asked to leave."""

    def leave(*_: Any) -> None:
        raise KeyboardInterrupt

    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--idle", type=float, default=10.0)
    found = parser.parse_args()
    signal.signal(signal.SIGTERM, leave)
    scheduler.check_run = lambda spec: None
    try:
        bench = scheduler.Bench(found.root, study(), Lasting(found.root), record=False, patience=60 * found.idle)
        states = bench.run()
    except KeyboardInterrupt:
        print("left", flush=True)
        return ExitCode.INTERRUPTED
    print("end", sorted(set(states.values())), flush=True)
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
