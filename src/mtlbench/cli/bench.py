"""``mtlbench bench``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from mtlbench.cli import buckets, engines
from mtlbench.cli.arguments import Request, add_methods, add_request, positive, read_request, results_folder
from mtlbench.cli.report import end_of_bench
from mtlbench.errors import DataError, ExitCode
from mtlbench.runs.store import RunFolder, read_json
from mtlbench.study import record as records
from mtlbench.study import resolve as studies
from mtlbench.study.record import states_of
from mtlbench.study.resolve import Local
from mtlbench.suite import Suite
from mtlbench.tracking import others as tracking

if TYPE_CHECKING:
    from mtlbench.bench.executors.base import Executor
    from mtlbench.bench.scheduler import Bench
    from mtlbench.runs.bucket import Bucket


EPILOG = f"Exit codes: {ExitCode.described()}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the suite with its changes, and how to run it."""
    add_request(parser)
    add_methods(parser)
    parser.add_argument("--jobs", type=positive, help="number of runs at once (default: one per core or accelerator)")
    parser.add_argument(
        "--devices", type=positive, default=1, help="devices per run; the effective batch size stays the same"
    )
    parser.add_argument(
        "--sample", action="store_true", help="render a small data set in the original layout and use it"
    )
    parser.add_argument("--retry", action="store_true", help="run failed runs again")
    engines.add_arguments(parser)
    parser.add_argument(
        "--dry", action="store_true", help="print runs, steps, and estimates of time and disk; train nothing"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing and show the leaderboard."""
    asked = read_request(arguments)
    tracking.check()
    engines.check(arguments)
    root = results_folder(arguments.results, asked.suite, dry=arguments.dry)
    if arguments.sample:
        asked = replace(asked, local=replace(asked.local, data=_miniature(asked.suite)))
    bucket = buckets.opened(arguments, asked.suite.name, root)
    key = studies.key_of(asked.suite, asked.local)
    known = records.recall(root, key)
    if known and not arguments.dry and _is_whole(root, states_of(root, known)):
        records.remember(root, known)
        return _end(root, unchanged=True)
    return _work(arguments, asked, root, bucket)


def _is_whole(root: Path, states: Mapping[str, str]) -> bool:
    """Whether every run is done and has its specification, so that nothing is left to train or to mend."""
    return bool(states) and all(state == "done" and RunFolder(root, run_id).spec() for run_id, state in states.items())


def _work(arguments: argparse.Namespace, asked: Request, root: Path, bucket: Bucket | None) -> int:
    print("Reading the suite and its methods …", flush=True)
    from mtlbench.bench.executors.bucket import BucketExecutor
    from mtlbench.bench.scheduler import Bench
    from mtlbench.cli.plan import print_details
    from mtlbench.cli.progress import Progress, print_doubts, print_plan

    study = studies.resolve(asked.suite, asked.local, asked.overrides, asked.place)
    print_doubts(study)
    if not arguments.dry:
        _prepare(asked.suite, asked.local)
    if arguments.executor == "slurm" and not arguments.dry:
        return engines.on_slurm(arguments, asked, root)
    if arguments.executor == "ray" and not arguments.dry:
        executor, jobs, threads = engines.on_ray(arguments, root)
    else:
        executor, jobs, threads = _on_this_machine(arguments, root)
    if bucket is not None and not arguments.dry:
        executor = BucketExecutor(root, bucket, executor)
    with Progress() as progress:
        bench = Bench(
            root,
            study,
            None if arguments.dry else executor,
            retry=arguments.retry,
            record=not arguments.dry,
            watch=progress.update,
            patience=engines.patience(arguments),
        )
        print_plan(bench, jobs, threads)
        if arguments.dry:
            print_details(bench, jobs)
            return _refused(bench)
        signal.signal(signal.SIGTERM, _interrupt)
        bench.run()
    if bench.left:
        print(f"No run is left to start. Other benches still train {len(bench.left)}; this one ends (--idle).")
        return ExitCode.DONE
    return _end(root, unchanged=False)


def _on_this_machine(arguments: argparse.Namespace, root: Path) -> tuple[Executor, int, int]:
    """Returns an executor of this machine, how many runs it takes at once, and threads per process."""
    from mtlbench.bench.executors.local import LocalExecutor

    accelerators = _accelerators()
    jobs, threads = _share_cores(arguments.jobs, arguments.devices, len(accelerators))
    options = {"jobs": jobs, "devices": arguments.devices, "threads": threads}
    return LocalExecutor(root, **options, accelerators=accelerators), jobs, threads


def _end(root: Path, *, unchanged: bool) -> int:
    """Show the leaderboard, log it where a tracking tool is on, and return the exit code."""
    code = end_of_bench(root, unchanged=unchanged)
    if os.environ.get("WANDB_MODE", "disabled") in ("online", "offline") or os.environ.get("MTLBENCH_TRACK"):
        from mtlbench.report.dashboard.mirror import mirror, mirror_others

        states = states_of(root, read_json(root / "study.json") or {"rows": []})
        if count := mirror(root, states):
            print(f"W&B: logged the leaderboard as {count} runs. `mtlbench dashboard` saves a view that compares them.")
        for name, count in mirror_others(root, states).items():
            print(f"{name}: logged the leaderboard as {count} runs.")
    return code


def _refused(bench: Bench) -> int:
    """Print the plans that break off on the results so far, and return the exit code."""
    broken = [member for member in bench.members if member.error]
    for member in broken:
        print(f"FAILED plan of {member.spec.label}, seed {member.spec.seed}: {member.error}", file=sys.stderr)
    return ExitCode.FAILED if broken else ExitCode.DONE


def _prepare(suite: Suite, local: Local) -> None:
    """Let the data module render or unpack its data once, before several runs do it at the same time."""
    from mtlbench import registry

    module = registry.load(suite.data.module)
    try:
        module(studies.root_of(suite, local), **suite.data.options).prepare_data()
    except DataError as error:  # A damaged file fails only the runs that read it.
        print(f"Warning: {error}", file=sys.stderr)


def _share_cores(jobs: int | None, devices: int, accelerators: int) -> tuple[int, int]:
    """Return runs at once and threads per process.

    On CPUs the default is one thread per run: two runs of one thread finish sooner than one run of two threads. With
    accelerators it is one run per group of ``devices`` accelerators.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if accelerators:
        return jobs or max(1, accelerators // devices), max(1, cores // accelerators)
    jobs = jobs or max(1, cores // devices)
    return jobs, max(1, cores // (jobs * devices))


def _accelerators() -> list[str]:
    """Return the accelerators as ``CUDA_VISIBLE_DEVICES`` calls them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [part.strip() for part in visible.split(",") if part.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _miniature(suite: Suite) -> str:
    """Writes a small data set in the layout of the suite's data and returns its folder."""
    from mtlbench import registry

    name = suite.data.module.partition(":")[0].rpartition(".")[2]
    return str(registry.load(suite.data.module).miniature_of(Path("data") / "samples" / name, suite.data.options))


def _interrupt(number: int, frame: FrameType | None) -> None:
    sys.stderr.write("\n")
    raise KeyboardInterrupt
