"""Tables of quality: measured gains of groups and predictions from pairs, and a random partition as a control."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtlbench.errors import MethodError
from mtlbench.grouping.assignment import Group, Table

Pairs = Mapping[tuple[str, str], float]
"""``{(recipient, source): value}``, including the pair of each task with itself."""


def relative_gains(
    tasks: Mapping[str, Mapping[str, Any]],
    scores: Mapping[Group, Mapping[str, Any]],
    singles: Mapping[Group, Mapping[str, Any]] | None = None,
) -> Table:
    """Returns the gain of each task of a group over its single-task run, relative to that run's score.

    The score is that of the task's first protocol, signed so that higher is better. If the single-task score is 0, the
    gain is the plain difference. A group without a finite score for a task has gain NaN and cannot serve it.

    Args:
        tasks: Description of every task; see `RunSpec.tasks`.
        scores: ``{group: {task: {protocol id: value}}}``.
        singles: Scores of every task alone, in the same form; None if ``scores`` holds them.

    Raises:
        MethodError: If a task's single-task score is not finite.
    """
    references = scores if singles is None else singles
    alone = {task: _score(references[(task,)], task, tasks) for task in tasks}
    for task, value in alone.items():
        if not math.isfinite(value):
            raise MethodError(
                f"Gains need a finite single-task score of every task. The single-task run of {task} has {value}. "
                "Train longer, or leave the task out."
            )
    return {
        group: {task: _gain(_score(found, task, tasks), alone[task]) for task in group}
        for group, found in scores.items()
    }


def from_pairs(groups: Iterable[Group], pairs: Pairs, alone: float) -> Table:
    """Returns the quality of groups from pairs: for j in S, the mean over all i ≠ j in S.

    Args:
        groups: The groups.
        pairs: Value of every pair. The pair of a task with itself is not used.
        alone: Quality of a group of one task.
    """
    return {
        group: {
            task: math.fsum(pairs[task, other] for other in group if other != task) / (len(group) - 1)
            if len(group) > 1
            else alone
            for task in group
        }
        for group in groups
    }


def random_partition(tasks: Sequence[str], networks: int, seed: int) -> list[Group]:
    """Returns a partition drawn from the seed, with group sizes that differ by at most one."""
    drawn = list(tasks)
    random.Random(f"random_grouping {seed}").shuffle(drawn)
    groups = [set(drawn[start::networks]) for start in range(networks)]
    ordered = [tuple(task for task in tasks if task in group) for group in groups]
    return sorted(ordered, key=lambda group: tasks.index(group[0]))


def _score(found: Mapping[str, Any], task: str, tasks: Mapping[str, Mapping[str, Any]]) -> float:
    protocol = tasks[task]["protocols"][0]
    value = (found.get(task) or {}).get(protocol["id"])
    return math.nan if value is None else value if protocol["higher_is_better"] else -value


def _gain(value: float, alone: float) -> float:
    return (value - alone) / (abs(alone) or 1.0)
