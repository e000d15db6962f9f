"""Stands in for SLURM on this machine: ``sbatch``, ``squeue`` and ``scontrol requeue`` over local processes.

`install` writes the three commands into a folder for PATH. Every job is a process group of its own; its state is a file
``<array>_<task>`` beside the commands, which holds ``PENDING``, ``RUNNING <pid>`` or, once it has ended, its exit code.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "squeue", "scontrol")


def install(folder: Path) -> Path:
    """Writes the commands into a folder and returns it."""
    folder.mkdir()
    for name in COMMANDS:
        (folder / name).write_text(f"#!{sys.executable} -IS\n" + Path(__file__).read_text())
        (folder / name).chmod(0o755)
    return folder


def state(folder: Path, job: str) -> list[str]:
    """Returns the words of a job's state."""
    return (folder / job).read_text().split()


def main(place: Path, words: list[str]) -> int:
    """Runs one of the commands."""
    if place.name == "sbatch":
        return _sbatch(place.parent, Path(words[-1]))
    if place.name == "squeue":
        array = words[words.index("--jobs") + 1]
        found = [state(path.parent, path.name)[0] for path in place.parent.glob(f"{array}_*")]
        print("\n".join(word for word in found if word.isalpha()))
        return 0
    (place.parent / f"requeue-{words[1]}").touch()
    return 0


def _sbatch(folder: Path, script: Path) -> int:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script.read_text(), re.MULTILINE))
    if "refuse" in asked:
        print("sbatch: error: invalid partition specified", file=sys.stderr)
        return 1
    last = int(asked["array"].partition("-")[2])
    for task in range(last + 1):
        (folder / f"77_{task}").write_text("PENDING")
        if os.fork() == 0:
            os.setsid()
            output = asked["output"].replace("%A", "77").replace("%a", str(task))
            handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            _job(folder, script, str(task))
            os._exit(0)
    print("77")
    return 0


def _job(folder: Path, script: Path, task: str) -> None:
    """Runs a job, and reruns it whenever it requeues itself."""
    for count in range(10):
        more = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": task, "SLURM_RESTART_COUNT": str(count)}
        process = subprocess.Popen(["bash", str(script)], env={**os.environ, **more}, start_new_session=True)
        _write(folder / f"77_{task}", f"RUNNING {process.pid}")
        code = process.wait()
        _write(folder / f"77_{task}", str(code))
        if not (folder / f"requeue-77_{task}").exists():
            return
        (folder / f"requeue-77_{task}").unlink()


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}")
    beside.write_text(text)
    beside.rename(path)


def stop(folder: Path) -> None:
    """Ends what a failed test has left."""
    for path in folder.glob("77_*"):
        words = state(folder, path.name)
        if words[0] == "RUNNING":
            os.killpg(int(words[1]), signal.SIGKILL)
    time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[0]), sys.argv[1:]))
