"""Finds the best networks to train, given a table of their quality, by dynamic programming over sets of tasks.

The total of a choice, Σ_j max over its groups S ∋ j of table[S][j], equals the maximum over all *partitions* of the
tasks into parts A, one per chosen network: Σ_A max_{S ⊇ A} Σ_{j ∈ A} table[S][j]. The inner maximum is one pass over
all pairs A ⊆ S, and the outer one is a recursion over sets of tasks. Both take about 3^T steps whatever the values. An
enumeration of all choices of b out of 2^T − 1 groups would be infeasible (T = 13, b = 5: 3 · 10^17).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mtlbench.errors import MethodError

Group = tuple[str, ...]
"""Tasks that share a network, in the order of the suite."""

Table = Mapping[Group, Mapping[str, float]]
"""Quality of a group's network for each of its tasks. Higher is better; a non-finite value excludes the task."""

ROUNDING = 1e-9
"""Tolerance by which costs may exceed the budget, so that three networks of cost 1/3 fit a budget of 1."""

MOST_TASKS = 16
"""Largest number of tasks whose subsets are searched. The search then takes seconds."""


@dataclass(frozen=True)
class Cover:
    """A choice of networks and, for each task, the network that serves it.

    Attributes:
        groups: Tasks of every network.
        serves: Index of the network that serves each task, the one that is best for it.
        total: Sum over tasks of the quality of the serving network.
        small: Tasks that have a small network of their own.
    """

    groups: tuple[Group, ...]
    serves: dict[str, int]
    total: float = math.nan
    small: frozenset[str] = frozenset()

    @classmethod
    def partition(cls, groups: Sequence[Group]) -> Cover:
        """Returns the cover by disjoint groups, each of which serves its own tasks."""
        return cls(tuple(groups), {task: index for index, group in enumerate(groups) for task in group})


def subsets(tasks: Sequence[str], largest: int | None = None) -> list[Group]:
    """Returns all groups of up to ``largest`` tasks, small ones first.

    Raises:
        MethodError: If there are more than `MOST_TASKS` tasks.
    """
    if len(tasks) > MOST_TASKS:
        raise MethodError(
            f"Groups are chosen among all subsets of at most {MOST_TASKS} tasks. Found {len(tasks)} tasks. Name fewer "
            "tasks in the suite."
        )
    sizes = range(1, (largest or len(tasks)) + 1)
    return [group for size in sizes for group in combinations(tasks, size)]


def best_cover(
    tasks: Sequence[str],
    table: Table,
    budget: float,
    single_cost: float = 1.0,
    small: Mapping[str, float] | None = None,
) -> Cover:
    """Returns the choice of groups with the largest total that costs at most ``budget``.

    Ties are broken by lower cost, then by fewer networks, then by smaller groups and the order of the tasks. Values are
    rounded to a grid of 2^-52 of their range, which makes their sums exact, so that equal totals compare equal.

    Args:
        tasks: All tasks, each of which must be served.
        table: Quality of the groups to choose from.
        budget: Largest total cost; a group of two or more tasks costs 1.
        single_cost: Cost of a group of one task, above 0.
        small: Quality of a small network of one task, by task. If given, these cost ``single_cost``, and the groups of
            one task in ``table`` cost 1 like any other.

    Raises:
        MethodError: If no choice within the budget serves all tasks.
    """
    groups = _in_order(tasks, table)
    rows: list[Mapping[str, float]] = [table[group] for group in groups]
    single = {group[0]: index for index, group in enumerate(groups) if len(group) == 1}
    if small is not None:
        single = {task: len(groups) + place for place, task in enumerate(small)}
        groups += [(task,) for task in small]
        rows += [{task: quality} for task, quality in small.items()]
    values = _on_grid([[row.get(task, math.nan) for task in tasks] for row in rows])
    # Only groups of cost 1 take part in the recursion. Networks of cost `single_cost` are added afterwards.
    masks = {
        index: sum(1 << tasks.index(task) for task in group)
        for index, group in enumerate(groups)
        if index not in single.values()
    }
    alone = [values[single[task], place] if task in single else -math.inf for place, task in enumerate(tasks)]

    worth, server = _best_servers(len(tasks), masks, values)
    served, parts = _partitions(worth, min(int(budget + ROUNDING), len(tasks)))
    networks, mask = _cheapest_best(served, alone, budget, single_cost)

    # The remaining tasks have networks of their own. Then the recursion is followed backwards, one part at a time.
    chosen = [single[task] for place, task in enumerate(tasks) if not mask >> place & 1]
    while mask:
        part = int(parts[networks, mask])
        chosen.append(int(server[part]))
        networks, mask = networks - 1, mask ^ part
    chosen.sort(key=lambda index: [tasks.index(task) for task in groups[index]])
    serves = {task: int(np.argmax(values[chosen, place])) for place, task in enumerate(tasks)}
    total = math.fsum(rows[chosen[index]][task] for task, index in serves.items())
    owners = frozenset(task for task in (small or ()) if single[task] in chosen)
    return Cover(tuple(groups[index] for index in chosen), serves, total, owners)


def _in_order(tasks: Sequence[str], groups: Iterable[Group]) -> list[Group]:
    place = {task: index for index, task in enumerate(tasks)}
    return sorted(groups, key=lambda group: (len(group), [place[task] for task in group]))


def _on_grid(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Returns values (groups, tasks), -inf if missing, rounded so that sums over tasks are exact."""
    values = np.array(rows, dtype=np.float64)
    values[~np.isfinite(values)] = -np.inf
    finite = values[np.isfinite(values)]
    largest = np.abs(finite).max(initial=0.0) * values.shape[1]
    unit = 2.0 ** (math.ceil(math.log2(largest)) - 52) if largest else 1.0
    return np.round(values / unit) * unit


def _within(mask: int, values: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns all subsets of a set of tasks in ascending order, and the sum of the values of each."""
    found, sums = np.zeros(1, dtype=np.int64), np.zeros(1)
    for place in range(mask.bit_length()):
        if mask >> place & 1:
            found = np.concatenate([found, found | 1 << place])
            sums = np.concatenate([sums, sums + values[place]])
    return found, sums


def _best_servers(tasks: int, masks: Mapping[int, int], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for every set of tasks, the best total of one group of cost 1 and the index of that group."""
    worth, server = np.full(1 << tasks, -np.inf), np.zeros(1 << tasks, dtype=np.int64)
    for index, mask in masks.items():
        parts, sums = _within(mask, values[index])
        better = sums > worth[parts]
        worth[parts[better]] = sums[better]
        server[parts[better]] = index
    return worth, server


def _partitions(worth: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best total of n networks for every set of tasks, (most + 1, sets), and the part of its first task."""
    served = np.full((most + 1, len(worth)), -np.inf)
    served[0, 0] = 0.0
    first = np.zeros(served.shape, dtype=np.int64)
    nothing = np.zeros(len(worth).bit_length())
    for mask in range(1, len(worth)):
        # The part that holds the first task is fixed, so that each partition is visited once.
        lowest = mask & -mask
        parts = _within(mask ^ lowest, nothing)[0] | lowest
        totals = worth[parts] + served[:-1, mask ^ parts]
        best = totals.argmax(axis=1)
        served[1:, mask] = totals[np.arange(most), best]
        first[1:, mask] = parts[best]
    return served, first


def _cheapest_best(served: np.ndarray, alone: Sequence[float], budget: float, single_cost: float) -> tuple[int, int]:
    """Returns the number of larger networks and the tasks that they serve; other tasks have their own networks."""
    every, sums = _within(served.shape[1] - 1, alone)
    singles = np.array([int(mask).bit_count() for mask in every])[::-1]
    networks = np.arange(len(served))[:, None]
    cost = networks + single_cost * singles
    totals = np.where(cost <= budget + ROUNDING, served + sums[::-1], -np.inf)
    if not np.isfinite(totals.max()):
        raise MethodError(
            f"Each task needs a network with a finite score within the budget. No choice of cost {budget:g} serves all "
            "tasks. Allow more networks, or check the scores of the runs."
        )
    order = np.lexsort(((networks + singles).ravel(), cost.ravel(), -totals.ravel()))
    row, mask = divmod(int(order[0]), served.shape[1])
    return row, mask
