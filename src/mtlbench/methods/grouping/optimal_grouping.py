"""Optimal grouping: trains every subset of the tasks and keeps the best choice within the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from mtlbench.errors import MethodError
from mtlbench.grouping import Grouping
from mtlbench.grouping.method import GroupingMethod
from mtlbench.method import MethodSpec
from mtlbench.runs.plan import Plan

SMALLER = ("encoder", "encoder_options", "decoder_channels")
"""Keys of a suite's section ``model`` that may differ in a small network."""


class OptimalGrouping(GroupingMethod):
    """Which Tasks Should Be Learned Together in Multi-task Learning? (https://arxiv.org/abs/1905.07553, ICML 2020).

    Rule: all 2^T - 1 subsets are trained. Of the choices of groups that cover all tasks at a cost of at most b, the one
    that maximises Σ_j max_{S ∋ j} gain_j(S) is kept; the group of largest gain serves a task.

    Symbols: b is ``networks``; a group of two or more costs 1, one task alone costs ``single_cost``; gain_j(S) is task
    j's validation score in the run on S relative to its single-task run, signed such that more is better.

    Args:
        networks: The budget b in networks, at least 1.
        train: Method or balancer that trains a group.
        single_cost: Cost of a network of one task, in (0, 1]; with ``small``, cost of a small one. The paper has 0.5.
        small: Changes of the suite's ``model`` that make a small network of one task, for example ``{encoder:
            resnet10t}``: ``encoder``, ``encoder_options``, ``decoder_channels``. With it, T further runs are trained,
            and each task may have a small network at ``single_cost`` or a full one at 1, as in the paper's budgets.
            None for full networks only.

    Differences from the official code: dynamic programming over sets of tasks instead of branch and bound, with the
    same optimum; gains of scores on the validation split instead of losses. The paper's networks of one task are half
    as large by construction, ours as large as the suite's ``small`` makes them, whatever ``single_cost`` says.

    Example:
        >>> from mtlbench.grouping import best_cover
        >>> loss = {"a": [0.1], "b": [0.2], "c": [0.3]}
        >>> loss |= {"ab": [0.09, 0.22], "bc": [0.18, 0.27], "abc": [0.12, 0.21, 0.26]}
        >>> table = {tuple(group): {t: -v for t, v in zip(group, row)} for group, row in loss.items()}
        >>> [best_cover("abc", table, budget, single_cost=0.5).groups for budget in (1, 1.5)]
        [(('a', 'b', 'c'),), (('a',), ('b', 'c'))]
    """

    TAXONOMY = "relationships/grouping"
    LATER: ClassVar[tuple[str, ...]] = ("small",)

    def __init__(
        self, spec: MethodSpec, *, single_cost: float = 1.0, small: dict[str, Any] | None = None, **common: Any
    ):
        _check(single_cost)
        super().__init__(spec, **common)

    @classmethod
    def choose(cls, grouping: Grouping, arguments: Mapping[str, Any]) -> Plan:
        """Chooses by gains of all subsets on the validation split.

        Raises:
            MethodError: If the cost of a single network is out of range, or no small network can be made.
        """
        _check(arguments["single_cost"])
        _check_small(arguments["small"], grouping.spec.model)
        return replace(grouping, small=arguments["small"]).by_all("validation", arguments["single_cost"])


def _check(single_cost: float) -> None:
    if not 0 < single_cost <= 1:
        raise MethodError(
            f"optimal_grouping: single_cost must be in (0, 1], where 1 is the cost of a group. Found {single_cost}."
        )


def _check_small(small: Any, model: Mapping[str, Any]) -> None:
    if small is None:
        return
    if not isinstance(small, Mapping) or not small or not set(small) <= set(SMALLER):
        raise MethodError(
            f"optimal_grouping: small may change {', '.join(SMALLER)} of the suite's model. Found {small!r}. Leave it "
            "out for full networks only."
        )
    changes = sorted(set(small) & {"encoder", "encoder_options"})
    # The hash of the weights belongs to one encoder and would be wrong for another.
    if changes and model.get("weights", "random") not in (None, "random"):
        raise MethodError(
            f"optimal_grouping: small networks with another encoder start from random weights. The suite's model has "
            f"pretrained ones, and small changes {', '.join(changes)}. Set weights: null, or change decoder_channels."
        )
