"""Cosine grouping: tasks whose gradients point the same way share a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtlbench.grouping import Grouping
from mtlbench.grouping.method import GroupingMethod
from mtlbench.method import MethodSpec
from mtlbench.runs.plan import Plan


class CosineGrouping(GroupingMethod):
    """The gradient baseline of TAG (https://arxiv.org/abs/2109.04617).

    Rule: one run on all tasks measures the mean cosine of the shared gradients of every pair (see `gradient_affinity`).
    Task j scores mean_{i ∈ S, i ≠ j} cos(g_i, g_j) in a group S; the groups are chosen as in `tag`.

    Symbols: g_i is the gradient of task i's loss with respect to the shared parameters.

    Args:
        networks: Largest number of networks, at least 1.
        train: Method or balancer that trains a group.
        every: Optimiser steps between two measurements, at least 1.

    Differences from the literature: none known; there is no official code for this baseline's selection.

    Example:
        >>> from mtlbench.grouping import best_cover, from_pairs, subsets
        >>> near = {("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")}
        >>> pairs = {(j, i): 0.9 if (j, i) in near else -0.1 for j in "abcd" for i in "abcd"}
        >>> best_cover("abcd", from_pairs(subsets("abcd"), pairs, alone=-1e6), budget=2).groups
        (('a', 'b'), ('c', 'd'))
    """

    TAXONOMY = "relationships/grouping"

    def __init__(self, spec: MethodSpec, *, every: int = 10, **common: Any):
        super().__init__(spec, **common)

    @classmethod
    def choose(cls, grouping: Grouping, arguments: Mapping[str, Any]) -> Plan:
        """Chooses by the mean cosine of gradients."""
        return grouping.by_affinity("gradient_affinity", "mean cosine of gradients", every=arguments["every"])
