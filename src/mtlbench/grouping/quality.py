"""Tables of quality: measured gains of groups, predictions from pairs, and a random partition as the control."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtlbench.errors import MethodError
from mtlbench.grouping.assignment import Group, Table

Pairs = Mapping[tuple[str, str], float]
"""``{(recipient, source): value}``, the pairs of a task with itself included."""


def relative_gains(
    tasks: Mapping[str, Mapping[str, Any]],
    scores: Mapping[Group, Mapping[str, Any]],
    singles: Mapping[Group, Mapping[str, Any]] | None = None,
) -> Table:
    """Returns the gain of each task of a group over its single-task run, relative to that run's score.

    The score is that of the task's first protocol, signed so that more is better. If the single-task score is 0, the
    gain is the plain difference. A group without a finite score for a task has gain NaN and cannot serve it.

    Args:
        tasks: Description of every task, see `RunSpec.tasks`.
        scores: ``{group: {task: {protocol id: value}}}``.
        singles: The same for every task alone, which gains are measured against; None if ``scores`` holds them.

    Raises:
        MethodError: If a task has no finite score alone.
    """
    references = scores if singles is None else singles
    alone = {task: _score(references[(task,)], task, tasks) for task in tasks}
    for task, value in alone.items():
        if not math.isfinite(value):
            raise MethodError(
                f"Gains are measured against a finite score of every task alone. The single-task run of {task} has "
                f"{value}. Train longer, or leave the task out."
            )
    return {
        group: {task: _gain(_score(found, task, tasks), alone[task]) for task in group}
        for group, found in scores.items()
    }


def from_pairs(groups: Iterable[Group], pairs: Pairs, alone: float) -> Table:
    """Returns the quality of groups as means over pairs: of j in S, the mean over i in S, i ≠ j.

    Args:
        groups: The groups.
        pairs: Value of every pair; that of a task with itself is not used.
        alone: Quality of a group of one.
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
    """Returns groups drawn from the seed, whose sizes differ by at most one."""
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
