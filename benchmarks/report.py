"""Prints what a report of many runs takes: ``python -m benchmarks.report [100 1000 10000]``.

Each size is a synthetic study with curves, gradients and pictures, as `tests.support.fake_study` writes it, reported in
a process of its own. Time is that of the process on the processor, since this command may run beside others.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.fake_study import METHODS, write_study

SEEDS = 10
LIMITS = {"seconds": 10.0, "mib": 500.0, "page": 10e6}
"""What a report of 1,000 runs may take; a page of 100 runs has half of the last."""


def study(folder: Path, runs: int) -> int:
    """Writes a study of about so many runs and returns how many it has; `single_task` has one run per task."""
    seeds = SEEDS if runs <= 1000 else 5 * SEEDS
    others = max(2, runs // seeds - 6)
    named = [name for name in METHODS if name not in ("single_task", "gradnorm")][:others]
    labels = ["single_task", *named, *(f"method_{i:03}" for i in range(others - len(named)))]
    write_study(folder, labels, range(seeds))
    return len(list(folder.glob("*/result.json")))


def report(folder: Path) -> None:
    """Writes the report and prints what it took, for the parent process."""
    from mtlbench import report as reports

    start = time.perf_counter()
    reports.write(folder)
    used = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "seconds": used.ru_utime + used.ru_stime,
        "wall": time.perf_counter() - start,
        "mib": used.ru_maxrss / 1024,
        "page": (folder / "report.html").stat().st_size,
    }
    print(json.dumps(found))


def main(sizes: list[int]) -> None:
    print("  runs  CPU s  wall s  peak MiB  page MB")
    for size in sizes:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "scenes"
            count = study(folder, size)
            command = [sys.executable, "-m", "benchmarks.report", "--one", str(folder)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ}).stdout
        found = json.loads(answer)
        print(
            f"{count:6} {found['seconds']:6.1f} {found['wall']:7.1f} {found['mib']:9.0f} {found['page'] / 1e6:8.2f}",
            flush=True,
        )
        if size == 1000:
            over = [name for name, limit in LIMITS.items() if found[name] > limit]
            if over:
                sys.exit(f"A report of 1,000 runs takes too much: {', '.join(over)}. The limits are {LIMITS}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[100, 1000, 10000], help="numbers of runs")
    parser.add_argument("--one", type=Path, metavar="FOLDER", help="report this folder and print what that took")
    given = parser.parse_args()
    report(given.one) if given.one else main(given.sizes)
