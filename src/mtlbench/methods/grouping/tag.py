"""TAG (task affinity grouping): groups tasks by the inter-task affinity measured in one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench.balancing.rules.probe import checked_preview
from mtlbench.grouping import Grouping
from mtlbench.grouping.method import GroupingMethod
from mtlbench.method import MethodSpec
from mtlbench.runs.plan import Plan


class TAG(GroupingMethod):
    """Efficiently Identifying Task Groupings for Multi-Task Learning (https://arxiv.org/abs/2109.04617, NeurIPS 2021).

    Rule: one run on all tasks measures Z_{i→j}, by how much a step on the gradient of task i alone lowers the loss of
    task j (see `inter_task_affinity`). Task j scores mean_{i ∈ S, i ≠ j} Z_{i→j} in a group S. Those at most b groups
    that cover all tasks and maximise Σ_j max_{S ∋ j} score_j(S) are trained, and the best of them by score serves j.

    Symbols: b is ``networks``. A task alone scores -1e6, so that any group is better. Z_{j→j} is never used.

    Args:
        networks: Largest number of networks, at least 1.
        train: Method or balancer that trains a group.
        every: Optimiser steps between two measurements, at least 1; the paper's code has 10.
        preview: The step whose effect is measured: ``"gradient"``, the paper's plain one, or ``"optimiser"``, that of
            the run's optimiser.

    Differences from the official code: the search over groups is exact for any b (dynamic programming over sets of
    tasks instead of enumeration); see `inter_task_affinity` for the measurement.

    Example:
        >>> from mtlbench.grouping import best_cover, from_pairs, subsets
        >>> friends = {("a", "b"): 0.3, ("b", "a"): 0.2}
        >>> pairs = {(j, i): friends.get((j, i), -0.1) for j in "abc" for i in "abc"}
        >>> best_cover("abc", from_pairs(subsets("abc"), pairs, alone=-1e6), budget=2).groups
        (('a', 'b'), ('a', 'c'))
    """

    VERSION = 2  # 2: the paper's plain step is the default.
    TAXONOMY = "relationships/grouping"

    def __init__(self, spec: MethodSpec, *, every: int = 10, preview: str = "gradient", **common: Any):
        checked_preview("tag", preview)
        super().__init__(spec, **common)

    @classmethod
    def choose(cls, grouping: Grouping, arguments: Mapping[str, Any]) -> Plan:
        """Chooses by the effect of steps on one task on the losses of the others."""
        probe = {name: arguments[name] for name in ("every", "preview")}
        return grouping.by_affinity("inter_task_affinity", "TAG inter-task affinity", **probe)
