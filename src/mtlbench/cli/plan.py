"""Details that ``mtlbench bench --dry`` prints: what would be trained, and estimates of its time and disk space."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mtlbench.errors import path_part_fault
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder

if TYPE_CHECKING:
    from mtlbench.bench.scheduler import Bench


def print_details(bench: Bench, jobs: int) -> None:
    """Prints methods by tasks by seeds, steps, what is done, and estimates of time and disk from finished runs."""
    lines = [case.spec for case in bench.study.cases]
    methods = list(dict.fromkeys(spec.label for spec in lines))
    tasks = list(dict.fromkeys(task for spec in lines for task in spec.tasks))
    seeds = list(dict.fromkeys(spec.seed for spec in lines))
    steps = ", ".join(f"{n:,}" for n in sorted({spec.trainer["steps"] for spec in bench.specs().values()}) if n)
    print(f"{len(methods)} methods ({', '.join(methods)})")
    print(f"  × {len(tasks)} tasks ({', '.join(tasks)})")
    print(f"  × {len(seeds)} seeds ({', '.join(map(str, seeds))})")
    print(f"{steps} steps each. {len(bench.specs())} runs are known now; plans in several stages may add more.")
    left = [spec for run_id, spec in bench.specs().items() if bench.state(run_id) != "done"]
    print(f"Time: {_time(bench.root, left, jobs)}")
    print(f"Disk: {_disk(bench.root, left)}")


def _time(root: Path, left: list[RunSpec], jobs: int) -> str:
    if not left:
        return "nothing is left to train."
    rates = dict(_rates(root))
    if not rates:
        return "not known yet, because no run of this suite has finished."
    mean = sum(rates.values()) / len(rates)
    seconds = [spec.trainer["steps"] * rates.get(spec.method["name"], mean) for spec in left]
    # The last run may begin when the others end, so no schedule is shorter than the longest run.
    wall = max(max(seconds), sum(seconds) / jobs)
    unknown = sorted({spec.method["name"] for spec in left} - set(rates))
    guess = f" {', '.join(unknown)}: taken as the mean of the others." if unknown else ""
    return f"about {_duration(wall)} with {jobs} runs at once, from finished runs of this suite.{guess}"


def _rates(root: Path) -> Iterable[tuple[str, float]]:
    """Yields seconds per step, training and evaluation together, as the mean of the finished runs of every method."""
    found: dict[str, list[float]] = {}
    for result in filter(None, (folder.result() for folder in _folders(root))):
        seconds, steps = (result.get("cost") or {}).get("train_seconds"), result.get("steps")
        if isinstance(seconds, (int, float)) and isinstance(steps, int) and seconds > 0 and steps > 0:
            found.setdefault(str(result.get("method")), []).append(seconds / steps)
    return [(method, sum(values) / len(values)) for method, values in found.items()]


def _disk(root: Path, left: list[RunSpec]) -> str:
    existing = next(place for place in (root, *root.absolute().parents) if place.exists())
    free = f"{shutil.disk_usage(existing).free / 1e9:,.1f} GB free."
    folders = [folder.path for folder in _folders(root) if folder.result()]
    if not left:
        return f"nothing is left to write; {free}"
    if not folders:
        return f"not known yet, because no run of this suite has finished; {free}"
    size = sum(file.stat().st_size for folder in folders for file in folder.iterdir() if file.is_file()) / len(folders)
    return f"about {len(left) * size / 1e6:,.1f} MB for {len(left)} runs, from finished runs of this suite; {free}"


def _folders(root: Path) -> list[RunFolder]:
    """Returns the folders with a result."""
    names = [path.parent.name for path in root.glob("*/result.json")]
    return [RunFolder(root, name) for name in names if not path_part_fault(name)]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
