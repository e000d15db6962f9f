"""``mtlbench run``: one method in this process, without the pool; for debugging, profiling and job arrays."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from mtlbench.cli.arguments import add_request, read_request, results_folder
from mtlbench.errors import ExitCode, MtlbenchError
from mtlbench.runs.store import RunFolder
from mtlbench.study import resolve as studies
from mtlbench.tracking import others as tracking


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the suite with its changes, and the method."""
    add_request(parser)
    parser.add_argument("--method", required=True, metavar="NAME", help="a method of the suite, or module:Class")


def run(arguments: argparse.Namespace) -> int:
    """Run the plan of one method for every seed in this process, one run after another."""
    arguments.methods = arguments.method
    asked = read_request(arguments)
    tracking.check()
    root = results_folder(arguments.results, asked.suite)
    from mtlbench.bench.scheduler import Bench
    from mtlbench.cli.progress import print_doubts
    from mtlbench.training.worker import Seat, work

    # The one method that was asked for, without the row of every study.
    study = studies.resolve(replace(asked.suite, floor=False), asked.local, asked.overrides, asked.place)
    print_doubts(study)
    bench = Bench(root, study, None)
    tried: set[str] = set()
    while True:
        bench.advance()
        todo = [s for run_id, s in bench.specs().items() if bench.state(run_id) in ("todo", "stale", "failed")]
        todo = [spec for spec in todo if spec.run_id not in tried]
        if not todo:
            # The lock of another machine may belong to a dead process: watch it until that is certain.
            if any(RunFolder(root, run_id).undecided() for run_id in bench.specs()):
                time.sleep(1)
                continue
            break
        tried.add(todo[0].run_id)
        print(f"{todo[0].run_id}: {todo[0].label}, tasks {', '.join(todo[0].tasks)}", flush=True)
        if work(str(root), todo[0].to_json(), Seat()) == ExitCode.STOPPED:
            return ExitCode.INTERRUPTED
    for run_id, state in bench.states().items():
        print(f"{run_id}: {state}  ({root / run_id})")
        if state == "failed":
            error = RunFolder(root, run_id).error() or {}
            raise MtlbenchError(f"{run_id} failed: {error.get('message')}")
    for member in bench.members:
        if member.error:
            raise MtlbenchError(f"The plan of {member.spec.label}, seed {member.spec.seed}, broke off: {member.error}")
    return ExitCode.DONE
