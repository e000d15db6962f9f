"""Optimal grouping: every subset of the tasks is trained, and the best affordable choice kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench.errors import MethodError
from mtlbench.grouping import Grouping
from mtlbench.grouping.method import GroupingMethod
from mtlbench.method import MethodSpec
from mtlbench.runs.plan import Plan


class OptimalGrouping(GroupingMethod):
    """Which Tasks Should Be Learned Together in Multi-task Learning? (https://arxiv.org/abs/1905.07553, ICML 2020).

    Rule: all 2^T - 1 subsets are trained. Of the choices of groups that cover all tasks at a cost of at most b, the one
    that maximises Σ_j max_{S ∋ j} gain_j(S) is kept; the group of largest gain serves a task.

    Symbols: b is ``networks``; a group of two or more costs 1, one task alone costs ``single_cost``; gain_j(S) is task
    j's validation score in the run on S relative to its single-task run, signed such that more is better.

    Args:
        networks: The budget b in networks, at least 1.
        train: Method or balancer that trains a group.
        single_cost: Cost of a network of one task, in (0, 1]. The paper's code has 0.5, with networks of half the size;
            ours are of full size, hence 1.

    Differences from the official code: dynamic programming over sets of tasks instead of branch and bound, with the
    same optimum; gains of scores on the validation split instead of losses.

    Example:
        >>> from mtlbench.grouping import best_cover
        >>> loss = {"a": [0.1], "b": [0.2], "c": [0.3]}
        >>> loss |= {"ab": [0.09, 0.22], "bc": [0.18, 0.27], "abc": [0.12, 0.21, 0.26]}
        >>> table = {tuple(group): {t: -v for t, v in zip(group, row)} for group, row in loss.items()}
        >>> [best_cover("abc", table, budget, single_cost=0.5).groups for budget in (1, 1.5)]
        [(('a', 'b', 'c'),), (('a',), ('b', 'c'))]
    """

    def __init__(self, spec: MethodSpec, *, single_cost: float = 1.0, **common: Any):
        _check(single_cost)
        super().__init__(spec, **common)

    @classmethod
    def choose(cls, grouping: Grouping, arguments: Mapping[str, Any]) -> Plan:
        """Chooses by gains of all subsets on the validation split.

        Raises:
            MethodError: If the cost of a single network is out of range.
        """
        _check(arguments["single_cost"])
        return grouping.by_all("validation", arguments["single_cost"])


def _check(single_cost: float) -> None:
    if not 0 < single_cost <= 1:
        raise MethodError(
            f"optimal_grouping: single_cost must be above 0 and at most 1, the cost of a group. Found {single_cost}."
        )
