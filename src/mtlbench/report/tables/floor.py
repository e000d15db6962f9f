"""Compares scores with the floor: the best prediction that ignores the input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtlbench.report.formatting import MARK
from mtlbench.report.model import Column
from mtlbench.report.statistics import Estimate, estimate, paired

Record = Mapping[str, Any]
BySeed = Mapping[int, float]
Scores = Mapping[tuple[str, str], BySeed]
"""(task, protocol) -> seed -> score."""


def not_better(ours: BySeed, floor: BySeed, higher_is_better: bool) -> bool:
    """Whether scores do not exceed the floor beyond the 95 % interval of the difference, paired by seed.

    With one seed the values alone decide. Without a common seed nothing is known, so the answer is no.
    """
    found = paired(ours, floor)
    if found is None:
        return False
    low, high = (found.estimate.mean if end is None else end for end in (found.estimate.low, found.estimate.high))
    return low <= 0 if higher_is_better else high >= 0


def at_floor(scores: Scores, floor: Scores, columns: Iterable[Column]) -> frozenset[tuple[str, str]]:
    """Returns the columns in which scores are not better than the floor."""
    return frozenset(
        c.key for c in columns if not_better(scores.get(c.key, {}), floor.get(c.key, {}), c.higher_is_better)
    )


def closed(ours: BySeed, floor: BySeed, best: float) -> dict[int, float]:
    """Returns, by seed, the share in per cent of the gap from the floor to the best value that is closed.

    0 is the floor, 100 the best value, whichever direction is better; worse than the floor is negative.
    """
    seeds = (seed for seed in ours if seed in floor and floor[seed] != best)
    return {seed: 100 * (ours[seed] - floor[seed]) / (best - floor[seed]) for seed in seeds}


def gaps(scores: Scores, floor: Scores, columns: Iterable[Column]) -> dict[str, dict[int, float]]:
    """Returns `closed` by task, of the columns of the table for which there is a floor."""
    found = {
        c.task: closed(scores.get(c.key, {}), floor[c.key], c.best) for c in columns if c.primary and floor.get(c.key)
    }
    return {task: by_seed for task, by_seed in found.items() if by_seed}


def mean_gap(by_task: Mapping[str, BySeed], tasks: Sequence[str], seeds: Sequence[int]) -> Estimate | None:
    """Returns the mean over tasks, over seeds; ``None`` unless every seed has every task."""
    if not tasks or not seeds or any(seed not in by_task.get(task, {}) for task in tasks for seed in seeds):
        return None
    return estimate(sum(by_task[task][seed] for task in tasks) / len(tasks) for seed in seeds)


def footnotes(marked: bool, baseline: str, weak: Sequence[str]) -> tuple[str, ...]:
    """Returns what the mark says of scores, and of Δm.

    Args:
        marked: Whether some score carries it.
        baseline: The row that Δm refers to.
        weak: Tasks in which that row is not better than the floor.
    """
    lines = [SCORES] if marked else []
    if weak:
        lines.append(
            f"{MARK} Δm and its differences: the baseline {baseline} is itself not better than the floor in "
            f"{', '.join(weak)}. Gains over it there say nothing about what was learned, so they support no claim."
        )
    return tuple(lines)


SCORES = (
    f"{MARK} Not significantly better than the floor (95 % interval of the difference, paired by seed; with one seed, "
    "by value)."
)


def about_floor(study: Record) -> str:
    """Returns a note on the row; ``""`` if the study has none."""
    without = [task for task, about in study["tasks"].items() if about.get("floor") is False]
    lacking = f" No floor: {', '.join(without)}, whose kind of task defines none." if without else ""
    return (
        "floor: the best prediction that ignores the input, fitted on the training labels. It is not ranked." + lacking
    )
