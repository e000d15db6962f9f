"""HOA (higher-order approximation): trains all pairs and predicts larger groups from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench.grouping import Grouping, best_cover, from_pairs, subsets
from mtlbench.grouping.method import GroupingMethod
from mtlbench.runs.plan import Plan


class HOA(GroupingMethod):
    """Which Tasks Should Be Learned Together in Multi-task Learning? (https://arxiv.org/abs/1905.07553, ICML 2020).

    Rule: all single tasks and pairs are trained, T (T + 1) / 2 runs. A group S of three or more is predicted to give
    task j the mean over its pairs, mean_{i ∈ S, i ≠ j} gain_j({i, j}). Those at most b groups that cover all tasks and
    maximise the sum of what each task gets from the best of them are trained; the best by prediction serves a task.

    Symbols: b is ``networks``; gain_j(S) is task j's validation score in the run on S relative to its single-task run,
    signed such that more is better; alone it is 0.

    Args:
        networks: Largest number of networks, at least 1.
        train: Method or balancer that trains a group.

    Differences from the official code: gains of scores instead of losses, so that tasks of different units count
    alike; a single-task network costs as much as any other, because ours are of full size.

    Example:
        >>> from mtlbench.grouping import from_pairs
        >>> pairs = {("a", "b"): 0.1, ("b", "a"): 0.2, ("a", "c"): 0.3, ("c", "a"): 0.4}
        >>> pairs |= {("b", "c"): 0.5, ("c", "b"): 0.6}
        >>> {task: round(value, 3) for task, value in from_pairs([("a", "b", "c")], pairs, 0.0)["a", "b", "c"].items()}
        {'a': 0.2, 'b': 0.35, 'c': 0.5}
    """

    TAXONOMY = "relationships/grouping"

    @classmethod
    def choose(cls, grouping: Grouping, arguments: Mapping[str, Any]) -> Plan:
        """Chooses by gains of pairs on the validation split."""
        tasks, groups = grouping.tasks, subsets(grouping.tasks)
        results = yield from grouping.measure(subsets(tasks, 2))
        gains, reported, note = grouping.gains(results, "validation")
        pairs = {(a, b): gains[tuple(task for task in tasks if task in (a, b))][a] for a in tasks for b in tasks}
        table = from_pairs(groups, pairs, alone=0.0)
        cover = best_cover(tasks, table, grouping.networks)
        # Without a validation split, the gain of a pair is its reported score and predicts nothing.
        known = {group: values for group, values in table.items() if len(group) > 2 or not reported}
        return (yield from grouping.end(cover, known, pairs, "relative gain of a pair over single tasks", note))
