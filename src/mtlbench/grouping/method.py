"""`GroupingMethod`, the base of methods that split the tasks among several networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench import registry
from mtlbench.grouping import Grouping
from mtlbench.grouping.plans import check_networks
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.runs.plan import Plan
from mtlbench.runs.spec import RunSpec


class GroupingMethod(MTLMethod):
    """Groups tasks and trains each group as an ordinary run: `single_task` for one task, ``train`` for several.

    Other plans share these runs. Outside its plan the method trains on the plain sum of the losses.

    Args:
        spec: See `MTLMethod`.
        networks: Largest number of networks, at least 1 and capped at the number of tasks.
        train: Method or balancer that trains a group of two or more tasks, with its default arguments.
    """

    def __init__(self, spec: MethodSpec, *, networks: int = 2, train: str = "uniform"):
        check_networks(networks)
        super().__init__(spec)

    @classmethod
    def plan(cls, spec: RunSpec) -> Plan:
        """Yields the runs of the search, then those of the chosen groups, and returns the record of the grouping.

        Raises:
            MethodError: If there is only one task, or an argument is out of range.
        """
        arguments: dict[str, Any] = registry.defaults(cls, spec.method["arguments"])
        grouping = Grouping.of(spec, arguments.pop("networks"), arguments.pop("train"))
        return cls.choose(grouping, arguments)

    @classmethod
    def choose(cls, grouping: Grouping, arguments: Mapping[str, Any]) -> Plan:
        """Searches for the best groups and trains them. Subclasses define it.

        Args:
            grouping: Turns groups into runs and results into tables.
            arguments: The method's further hyper-parameters.
        """
        raise NotImplementedError
