"""Prints the duration of a bench whose runs are all complete: ``python -m benchmarks.noop [repeats]``."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.arguments import call

TRACE = "import sys, mtlbench.cli as c; code = c.main(sys.argv[1:]); print('torch' in sys.modules); sys.exit(code)"


def main(repeats: int = 7) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = ["bench", "digits", "trainer.steps=5", "--results", folder]
        run([sys.executable, "-m", "mtlbench.cli", *bench])
        torch_imported = run([sys.executable, "-c", TRACE, *bench]).splitlines()[-1]
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            run([str(Path(sys.executable).parent / "mtlbench"), *bench])
            times.append(time.perf_counter() - start)
        runs = len(list(Path(folder).glob("digits/*/result.json")))
    print("| second `mtlbench bench digits`, s | torch imported |\n|---|---|")
    print(f"| {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f}) | {torch_imported} |")
    print(f"{runs} runs, all done; median of {repeats} processes, end to end, on {os.cpu_count()} cores.")


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


if __name__ == "__main__":
    call(main, __doc__)
