"""Random grouping: a control that draws groups from the seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench.grouping import Cover, Grouping, random_partition
from mtlbench.grouping.method import GroupingMethod
from mtlbench.runs.plan import Plan


class RandomGrouping(GroupingMethod):
    """Control: the gain from several networks without any knowledge of the tasks.

    Rule: the tasks are split at random into b groups whose sizes differ by at most one; each is trained and serves its
    own tasks.

    Symbols: b is ``networks``.

    Args:
        networks: Number of groups, at least 1 and capped at the number of tasks.
        train: Method or balancer that trains a group.

    Differences from the literature: none; every seed of the suite draws its own groups.

    Example:
        >>> from mtlbench.grouping import random_partition
        >>> sorted(len(group) for group in random_partition("abcde", networks=2, seed=0))
        [2, 3]
    """

    TAXONOMY = "relationships/grouping"

    @classmethod
    def choose(cls, grouping: Grouping, arguments: Mapping[str, Any]) -> Plan:
        """Draws the groups."""
        drawn = random_partition(grouping.tasks, grouping.networks, grouping.spec.seed)
        return grouping.end(Cover.partition(drawn))
