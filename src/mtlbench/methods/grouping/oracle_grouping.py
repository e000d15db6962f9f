"""Oracle grouping: an upper bound that chooses groups by the reported scores themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench.grouping import Grouping
from mtlbench.grouping.method import GroupingMethod
from mtlbench.runs.plan import Plan


class OracleGrouping(GroupingMethod):
    """Upper bound: the result of a perfect choice of groups. Use it only as a reference for other methods.

    Rule: as `optimal_grouping` with networks of equal cost, but by the gains on the reported split. It uses scores that
    no method may see, so its own score is optimistic, and its record says so.

    Symbols: see `optimal_grouping`.

    Args:
        networks: Largest number of networks, at least 1.
        train: Method or balancer that trains a group.

    Differences from `optimal_grouping`: the split; and its record holds no predictions, because a score does not
    predict itself.

    Example:
        >>> from mtlbench.registry import find
        >>> find("oracle_grouping").__name__
        'OracleGrouping'
    """

    TAXONOMY = "relationships/grouping"

    @classmethod
    def choose(cls, grouping: Grouping, arguments: Mapping[str, Any]) -> Plan:
        """Chooses by gains of all subsets on the reported split."""
        return grouping.by_all("scores")
