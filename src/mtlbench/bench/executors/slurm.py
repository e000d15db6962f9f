"""SLURM: a job array whose jobs all run the same bench on one results folder. Needs no torch.

There is nothing to coordinate. Two benches on one folder train every run once, so each job of the array is a bench of
its own, which trains what no other one trains. A job that is asked to leave lets its runs write checkpoints and puts
itself back into the queue; a run whose job was killed is resumed by whichever job finds it first.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtlbench.errors import MtlbenchError, inert, shortened
from mtlbench.runs.store import exclusive, read_json, write_json, write_text
from mtlbench.suite.schema import COUNT, PERIOD, Range, ranged

FOLDER = "slurm"
"""Where the script, its jobs' output and the ids of submitted arrays are, within ``results/<suite>``."""
_SUBMITTED = "submitted.json"
_ANSWER_S = 20.0


@dataclass(frozen=True)
class SlurmOptions:
    """Options of the SLURM executor.

    Attributes:
        jobs: Jobs of the array. Each holds the resources that ``sbatch`` asks for and trains runs until none is left.
        sbatch: Options of ``sbatch``, for example ``--gres=gpu:1`` or ``--time=24:00:00``.
        setup: Shell commands that run before the bench, for example ``module load cuda``.
        lead: Seconds before the end of a job's time at which SLURM asks it to leave. Runs need them to end a step and
            to write a checkpoint.
        idle: Minutes without a run to start after which a job ends although others still train. The first job stays
            until the study is done, because a plan may yield further runs.
    """

    jobs: int = ranged(4, Range(1, 10_000))
    sbatch: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    lead: int = ranged(120, COUNT)
    idle: int = ranged(10, PERIOD)


def script(command: Sequence[str], root: Path, options: SlurmOptions, *, place: Path, retry: bool = False) -> str:
    """Returns the batch script of the array.

    Args:
        command: The bench that every job runs, as words.
        root: ``results/<suite>``.
        options: What the user asks of the cluster.
        place: The folder in which the command runs.
        retry: Let the first start of the first job run failed runs again; every job would repeat them otherwise.
    """
    output = str(root.absolute() / FOLDER).replace("%", "%%") + "/%A_%a.log"
    asked = [
        f"--job-name={shlex.quote(f'mtlbench-{root.name}')}",
        f"--array=0-{options.jobs - 1}",
        "--requeue",
        "--open-mode=append",
        f"--signal=B:USR1@{options.lead}",
        f"--output={shlex.quote(output)}",
        *options.sbatch,
    ]
    first = "more=(--retry)" if retry else "more=()"
    return _SCRIPT.format(
        asked="\n".join(f"#SBATCH {line}" for line in asked),
        place=shlex.quote(str(place)),
        setup="\n".join(options.setup) or ":",
        idle=f"more=(--idle {options.idle})",
        first=f'[ "${{SLURM_ARRAY_TASK_ID:-0}}" = 0 ] && more=() && [ "${{SLURM_RESTART_COUNT:-0}}" = 0 ] && {first}',
        command=shlex.join(command),
    )


_SCRIPT = """\
#!/bin/bash
{asked}
# Written by mtlbench. Every job runs the same bench: it trains what no other job trains, and resumes what was stopped.
cd {place} || exit 2
{setup}
bench=
leave() {{  # Runs write a checkpoint before they end.
  [ -n "$bench" ] && kill -TERM "$bench" 2>/dev/null && wait "$bench"
}}
trap 'leave; scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"; exit 0' USR1
trap 'leave; exit 143' TERM
{idle}
{first}
{command} "${{more[@]}}" &
bench=$!
wait "$bench"
"""


def write(root: Path, text: str) -> Path:
    """Writes the script into the results folder and returns its path."""
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    write_text(root / FOLDER / "jobs.sh", text)
    return root / FOLDER / "jobs.sh"


def submit(root: Path, path: Path) -> str:
    """Submit a script, remember the id of its array in the results folder, and return it.

    Raises:
        MtlbenchError: If there is no ``sbatch``, or it refuses the script.
    """
    if shutil.which("sbatch") is None:
        raise MtlbenchError(
            f"--submit needs sbatch. It is not on PATH. Run it where SLURM is: sbatch {shlex.quote(str(path))}"
        )
    code, text = _answer(["sbatch", "--parsable", str(path)])
    number = text.strip().partition(";")[0]
    if code or not number.isdecimal():
        raise MtlbenchError(
            f"sbatch must accept {path}. It ended with code {code}: {shortened(inert(text))}. Correct the options in "
            "executor.yaml or --option."
        )
    with exclusive(root):
        write_json(root / FOLDER / _SUBMITTED, {"arrays": [*_arrays(root), number]})
    return number


def queue(root: Path) -> str:
    """Returns a line about the jobs of a study in the queue, ``""`` if none was submitted by this command."""
    arrays = _arrays(root)
    if not arrays:
        return ""
    named = f"SLURM array {', '.join(arrays)}: "
    if shutil.which("squeue") is None:
        return f"{named}squeue is not on this machine, so the state of the jobs is not known here."
    code, text = _answer(["squeue", "--noheader", "--array", "--jobs", ",".join(arrays), "--format", "%T"])
    if code and "nvalid job id" not in text:  # What squeue says once an array has left its memory.
        return f"{named}squeue does not answer ({shortened(inert(text))})."
    found = Counter(inert(text).lower().split() if not code else [])
    counts = ", ".join(f"{count} {state}" for state, count in sorted(found.items()))
    return f"{named}{counts or 'no job is in the queue'}."


def _arrays(root: Path) -> list[str]:
    found = (read_json(root / FOLDER / _SUBMITTED) or {}).get("arrays")
    return [each for each in found if isinstance(each, str) and each.isdecimal()] if isinstance(found, list) else []


def _answer(command: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_ANSWER_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, str(error)
    return done.returncode, done.stdout if not done.returncode else done.stdout + done.stderr
