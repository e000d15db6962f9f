"""Oracle grouping: the upper bound that chooses by the reported scores themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench.grouping import Grouping
from mtlbench.grouping.method import GroupingMethod
from mtlbench.runs.plan import Plan


class OracleGrouping(GroupingMethod):
    """What a perfect choice of groups would reach: no method to use, a bound to hold the others against.

    Rule: as `optimal_grouping` with networks of equal cost, but by the gains on the split that is reported. It looks at
    what it must not know, so its score is optimistic, and its record says so.

    Symbols: see `optimal_grouping`.

    Args:
        networks: Networks at most, at least 1.
        train: Method or balancer that trains a group.

    Differences from `optimal_grouping`: the split, and that the reported scores are no prediction of themselves, so its
    record holds none.

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
