"""Prints how well affinities rank groups of tasks: ``python -m benchmarks.group_quality [results/grouping]``.

Reads a finished study that trained the groups, such as suite `grouping`, and trains nothing. A line is a row of the
study: a grouping method, or a method that measured affinities while it trained all tasks together (`it_mtl`,
`hydalearn` with ``main: all``). ρ is Spearman's rank correlation, over all groups of two or more tasks, of predicted
quality and the mean relative gain over single-task runs of the same seed on the reported split.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.arguments import call
from mtlbench.report import load
from mtlbench.report.groups import FoundGroups
from mtlbench.report.model import Leaderboard
from mtlbench.report.reader import read_summary
from mtlbench.report.statistics import estimate
from mtlbench.report.tables.grouping import probed


def main(folder: str = "results/grouping") -> None:
    study, board = load(Path(folder))
    if not isinstance(board, Leaderboard):
        sys.exit(f"A study of groups has no scenario. {folder} has one. Name a folder of the suite grouping.")
    summaries = {run: read_summary(study, run) for run in study.results}
    measured = probed(study.plan, board.columns, study.results, summaries)
    found = {grouping.label: grouping.found for grouping in board.groupings} | measured
    lines = [line(label, each) for label, each in found.items() if any(f.correlation is not None for f in each)]
    if not lines:
        sys.exit(f"No row of {folder} predicts groups that the study trained. Bench the suite grouping first.")
    print("| row | ρ | 95 % interval | by seed | groups |\n|---|---|---|---|---|")
    print("\n".join(lines))


def line(label: str, found: Sequence[FoundGroups]) -> str:
    by_seed = {each.seed: each.correlation for each in found if each.correlation is not None}
    mean = estimate(by_seed.values())
    interval = "–" if mean.low is None or mean.high is None else f"[{mean.low:+.2f}, {mean.high:+.2f}]"
    seeds = ", ".join(f"{seed}: {value:+.2f}" for seed, value in sorted(by_seed.items()))
    sizes = ", ".join(map(str, sorted({len(each.qualities) for each in found})))
    return f"| `{label}` | {mean.mean:+.2f} | {interval} | {seeds} | {sizes} |"


if __name__ == "__main__":
    call(main, __doc__)
