"""A bench from Python, in a process of its own: scripts need no ``if __name__ == "__main__"``, notebooks no restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mtlbench import suite as suites
from mtlbench.api.results import Results, results
from mtlbench.errors import ExitCode, MtlbenchError


def bench(
    suite: str | Path,
    methods: Iterable[str] | None = None,
    seeds: int | Iterable[int] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    folder: str | Path = "results",
    data: str | Path | None = None,
    jobs: int | None = None,
    devices: int | None = None,
    trials: int | None = None,
    sample: bool = False,
    retry: bool = False,
) -> Results:
    """Trains the missing runs of a suite and returns its results, as ``mtlbench bench`` does.

    The runs are trained in other processes, which import methods and data modules by name from the current folder.
    What the command prints is printed here, line by line.

    Args:
        suite: Name of a suite, or path to a YAML file.
        methods: Only these methods: names, or ``"module:Class"``. Default: those of the suite.
        seeds: Number of seeds, or the seeds themselves. Default: those of the suite.
        settings: Keys of the suite to change, for example ``{"trainer.steps": 100}``.
        folder: Folder of all results; those of the suite are in ``<folder>/<suite>``.
        data: Folder of the data.
        jobs: Runs at once. Default: one per core or accelerator.
        devices: Devices per run.
        trials: Tune every row with this number of trials.
        sample: Render a small data set in the original layout and use it.
        retry: Run failed runs again.

    Raises:
        MtlbenchError: If the suite, a name, a value or the data is refused, or the command ended in another way.

    Warns:
        UserWarning: If a run failed. The results hold the others; ``problems`` says why it failed.

    Example::

        found = mtlbench.bench("digits", methods=["single_task", "uniform", "pcgrad"], seeds=3)
        found.leaderboard()
    """
    changes = [f"{key}={json.dumps(value, default=str)}" for key, value in (settings or {}).items()]
    name = suites.load(str(suite), changes).name
    options = {
        "--results": folder,
        "--methods": None if methods is None else " ".join(_listed(methods)),
        "--seeds": seeds if seeds is None or isinstance(seeds, int) else "".join(f"{seed}," for seed in seeds),
        "--data": data,
        "--jobs": jobs,
        "--devices": devices,
        "--trials": trials,
    }
    words = [word for option, value in options.items() if value is not None for word in (option, str(value))]
    words += [option for option, wanted in (("--sample", sample), ("--retry", retry)) if wanted]
    code, message = _run([str(suite), *changes, *words])
    if code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if code not in (ExitCode.DONE, ExitCode.FAILED):
        raise MtlbenchError(
            message or f"mtlbench bench must end by itself. It ended with exit code {code}. Run it again."
        )
    if code == ExitCode.FAILED:
        warnings.warn(f"Some runs have no result; see problems.\n{message}", stacklevel=2)
    return results(Path(folder) / name)


def _run(words: list[str]) -> tuple[int, str]:
    """Runs the command, prints its output, and returns its exit code and what it wrote to standard error."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        # In a session of its own the command is interrupted once, by this process, wherever that runs.
        process = subprocess.Popen(
            _command(words),
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            encoding="utf-8",
            start_new_session=True,
        )
        try:
            code = _ended(process)
        except BaseException:
            process.send_signal(signal.SIGINT)
            _ended(process)  # Runs write a checkpoint first.
            raise
        errors.seek(0)
        message = errors.read().removeprefix("mtlbench: ").strip()
    if code == ExitCode.DONE and message:
        print(message, file=sys.stderr)
    return code, message


def _ended(process: subprocess.Popen[str]) -> int:
    """Prints what a process writes until it ends, and returns its exit code."""
    for line in process.stdout or ():
        print(line, end="", flush=True)
    return process.wait()


def _command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "mtlbench.cli", "bench", *words]


def _listed(methods: Iterable[str]) -> list[str]:
    """Returns names of methods; one name alone is a list of one."""
    return [methods] if isinstance(methods, str) else list(methods)
