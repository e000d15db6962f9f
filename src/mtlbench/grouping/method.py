"""`GroupingMethod`: base of the methods that split the tasks among several networks."""

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
    """Groups tasks and trains ordinary runs, which other plans share: `single_task` for one task, ``train`` for more.

    Outside its plan it trains on the plain sum of the losses.

    Args:
        spec: See `MTLMethod`.
        networks: Largest number of networks, at least 1; capped at the number of tasks.
        train: Method or balancer, with its defaults, that trains a group of two or more tasks.
    """

    def __init__(self, spec: MethodSpec, *, networks: int = 2, train: str = "uniform"):
        check_networks(networks)
        super().__init__(spec)

    @classmethod
    def plan(cls, spec: RunSpec) -> Plan:
        """Yields the runs of the search, then those of the chosen groups; ends with the grouping's record.

        Raises:
            MethodError: If there is one task only, or an argument is out of range.
        """
        arguments: dict[str, Any] = registry.defaults(cls, spec.method["arguments"])
        grouping = Grouping.of(spec, arguments.pop("networks"), arguments.pop("train"))
        return cls.choose(grouping, arguments)

    @classmethod
    def choose(cls, grouping: Grouping, arguments: Mapping[str, Any]) -> Plan:
        """Searches the groups and trains them; defined by subclasses.

        Args:
            grouping: Makes runs of groups, and tables of results.
            arguments: The method's further hyper-parameters.
        """
        raise NotImplementedError
