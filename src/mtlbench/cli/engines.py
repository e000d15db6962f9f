"""What ``mtlbench bench`` needs to run on more than this machine: its arguments, and the jobs that it hands over."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from mtlbench.bench.executors import slurm
from mtlbench.bench.executors.base import Executor
from mtlbench.bench.executors.options import read_options
from mtlbench.bench.executors.ray_cluster import RayOptions
from mtlbench.bench.executors.slurm import SlurmOptions
from mtlbench.cli.arguments import Request, overrides_of
from mtlbench.errors import ExitCode, SuiteError

NAMES = ("local", "slurm", "ray")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that choose an executor and set its options."""
    parser.add_argument(
        "--executor", choices=NAMES, default="local", help="where runs are trained (default: local, this machine)"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the executor, as in executor.yaml, e.g. jobs=8; repeat the flag for several options",
    )
    parser.add_argument("--submit", action="store_true", help="with --executor slurm: submit the script with sbatch")
    parser.add_argument(
        "--idle",
        type=_minutes,
        metavar="MINUTES",
        help="end after this many minutes without a run to start, even if other benches are still training",
    )


def check(arguments: argparse.Namespace) -> None:
    """Refuse options that the chosen executor does not have.

    Raises:
        SuiteError: If there are any.
    """
    if arguments.submit and arguments.executor != "slurm":
        raise SuiteError(
            f"--submit hands jobs to SLURM. Found --executor {arguments.executor}. Add --executor slurm, or omit it."
        )
    if arguments.executor == "local" and arguments.option:
        raise SuiteError(
            f"--option is for executors beyond this machine. Found {arguments.option[0]!r}. Use --jobs and --devices, "
            "or name another --executor."
        )
    if arguments.executor == "ray":
        options = read_options(RayOptions, "ray", arguments.option)
        if options.nodes > 1 and not options.shared:
            raise SuiteError(
                f"Nodes that train a run together share its folder. Found nodes={options.nodes} and shared=false. Give "
                "all nodes the same results folder, or set nodes=1."
            )
        if options.shared and hasattr(arguments, "url"):
            raise SuiteError(
                "Nodes of a Ray cluster do not work in a bucket. Found --results with a URL and shared=true. Add "
                "--option shared=false, so that their results come back to the bench, which sends them to the bucket."
            )
    if kind := {"slurm": SlurmOptions, "ray": RayOptions}.get(arguments.executor):
        read_options(kind, arguments.executor, arguments.option)


def patience(arguments: argparse.Namespace) -> float:
    """Returns the seconds after which an idle bench ends."""
    return math.inf if arguments.idle is None else 60.0 * arguments.idle


def on_slurm(arguments: argparse.Namespace, asked: Request, root: Path) -> int:
    """Write the script of a job array that runs this very bench, and submit it if that was asked for.

    Raises:
        MtlbenchError: If it cannot be submitted.
    """
    options = read_options(SlurmOptions, "slurm", arguments.option)
    text = slurm.script(command(arguments, asked), root, options, place=Path.cwd(), retry=arguments.retry)
    path = slurm.write(root, text)
    print(f"Written: {path}, an array of {options.jobs} jobs.")
    if arguments.submit:
        print(f"Submitted as SLURM array {slurm.submit(root, path)}.")
    else:
        print(f"Submit it with: sbatch {path} (or add --submit)")
    print(
        f"State of the runs: mtlbench status {arguments.suite} --results {getattr(arguments, 'url', arguments.results)}"
    )
    return ExitCode.DONE


def on_ray(arguments: argparse.Namespace, root: Path) -> tuple[Executor, int, int]:
    """Returns an executor of a Ray cluster, how many runs it takes at once now, and threads per process.

    Raises:
        MtlbenchError: If Ray is not installed or there is no cluster.
    """
    from mtlbench.bench.executors.ray_cluster import RayCluster
    from mtlbench.bench.executors.remote import RemoteExecutor

    options = read_options(RayOptions, "ray", arguments.option)
    cluster = RayCluster(options, arguments.devices)
    executor = RemoteExecutor(
        root,
        cluster,
        jobs=arguments.jobs,
        devices=arguments.devices,
        threads=options.cpus,
        shared=options.shared,
        every=options.every,
    )
    return executor, arguments.jobs or cluster.room(), options.cpus


def command(arguments: argparse.Namespace, asked: Request) -> list[str]:
    """Returns the command line of the bench that every job runs; the results folder is named in full."""
    options = {
        "--methods": arguments.methods,
        "--seeds": arguments.seeds,
        "--trials": arguments.trials,
        "--data": asked.local.data,
        "--results": getattr(arguments, "url", None) or Path(arguments.results).absolute(),
        "--jobs": arguments.jobs,
        "--devices": arguments.devices,
    }
    words = [word for key, value in options.items() if value is not None for word in (key, str(value))]
    return [sys.executable, "-m", "mtlbench.cli", "bench", arguments.suite, *overrides_of(arguments), *words]


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be at least 0 and finite, found {value:g}")
    return value
