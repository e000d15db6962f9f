"""Optimal grouping: all subsets are trained, the best affordable choice on the validation split is kept."""

from __future__ import annotations

import math

import pytest

from mtlbench.errors import MethodError
from mtlbench.grouping import subsets
from mtlbench.methods.grouping.optimal_grouping import OptimalGrouping
from mtlbench.testing import toy_spec
from tests.support.grouping_plans import TASKS, begin, drive, expected, gaining, scored, spec

THREE = ["kind", "far", "mean"]
LOSSES = {
    ("kind",): [0.1], ("far",): [0.2], ("mean",): [0.3], ("kind", "far"): [0.09, 0.22], ("far", "mean"): [0.18, 0.27],
    ("kind", "mean"): [9.0, 9.0], ("kind", "far", "mean"): [0.12, 0.21, 0.26],
}  # fmt: skip


def golden(group, task):
    """The specification's losses, made into scores: `kind` is an accuracy, so its loss is negated."""
    value = LOSSES[group][group.index(task)]
    return -value if task == "kind" else value


def gains():
    """Returns the gains by hand: how much of its own loss alone a task saves."""
    alone = {task: LOSSES[task,][0] for task in THREE}
    return {g: {t: 1 - v / alone[t] for t, v in zip(g, row, strict=True)} for g, row in LOSSES.items()}


def test_all_subsets_in_one_stage_and_no_more():
    line = spec("optimal_grouping")
    (stage,), _ = drive(line, gaining(lambda group, task: 0.01))
    assert [run.run_id for run in stage] == [expected(line, *group) for group in subsets(TASKS)]
    assert len(stage) == 15


@pytest.mark.parametrize(
    ("networks", "cost", "groups"),
    [
        # Gains in per cent: kind, far: 10, -10; far, mean: 10, 10; all three: -20, -5, 13.3; alone: 0.
        (1, 1.0, [THREE]),
        (2, 1.0, [["kind", "far"], ["far", "mean"]]),
        (3, 1.0, [["kind", "far"], ["kind", "far", "mean"], ["far", "mean"]]),
        (1, 0.25, [["kind"], ["far"], ["mean"]]),
        (1, 0.5, [THREE]),
        (1, 0.34, [THREE]),
    ],
)
def test_golden(networks, cost, groups):
    line = spec("optimal_grouping", tasks=THREE, networks=networks, single_cost=cost)
    _, ending = drive(line, scored(golden))
    assert ending.record["groups"] == groups
    table, found = gains(), ending.record["serves"]
    for task in THREE:
        assert table[tuple(groups[found[task]])][task] == max(table[tuple(g)][task] for g in groups if task in g)
        assert ending.serving[task] == expected(line, *groups[found[task]])


def test_the_search_is_what_was_not_chosen():
    line = spec("optimal_grouping", tasks=THREE)
    (stage,), ending = drive(line, scored(golden))
    rest = {run.run_id for run in stage} - {*ending.serving.values()}
    assert {*ending.record["search_runs"]} == rest and len(rest) == 5


def test_its_predictions_are_the_gains_on_validation():
    _, ending = drive(spec("optimal_grouping", tasks=THREE), scored(golden))
    predicted = {tuple(entry["group"]): entry["values"] for entry in ending.record["predicted"]}
    assert predicted.keys() == gains().keys() and "affinity" not in ending.record
    for group, values in gains().items():
        assert predicted[group] == pytest.approx(values)


def test_without_a_further_split_a_score_predicts_nothing():
    """What was chosen by is what is reported: to correlate the two would always give 1."""
    table = scored(golden, split="scores")

    def invent(run):
        return {**table(run), "validation": None}

    for name, known in (("optimal_grouping", []), ("hoa", [THREE])):
        _, ending = drive(spec(name, tasks=THREE), invent)
        assert [entry["group"] for entry in ending.record["predicted"]] == known
        assert "reported" in ending.record["note"]


def test_a_run_without_a_score_is_not_chosen():
    def value(group, task):
        return math.nan if group == ("far", "mean") else golden(group, task)

    _, ending = drive(spec("optimal_grouping", tasks=THREE), scored(value))
    assert ["far", "mean"] not in ending.record["groups"]
    assert {"group": ["far", "mean"], "values": {}} in ending.record["predicted"]


def test_a_record_holds_no_more_than_127_predictions():
    from mtlbench.grouping.plans import _capped

    table = {group: dict.fromkeys(group, 0.5) for group in subsets("abcdefgh")}
    chosen = [tuple("abcdefgh"), ("a", "b")]
    found = [tuple(entry["group"]) for entry in _capped(table, chosen)]
    assert len(table) == 255 and len(found) == len(set(found)) == 127 and set(chosen) < set(found)
    assert max(len(group) for group in found if group not in chosen) == 4


@pytest.mark.parametrize("cost", [0.0, -1.0, 1.5, math.nan, math.inf])
def test_a_single_network_costs_something_and_no_more_than_a_group(cost):
    with pytest.raises(MethodError, match="single_cost must be above 0"):
        begin(spec("optimal_grouping", single_cost=cost))
    from mtlbench.training.build import build

    with pytest.raises(MethodError, match="single_cost must be above 0"):
        build(toy_spec("optimal_grouping", arguments={"single_cost": cost}))


def test_the_cost_of_a_single_network_is_ours_by_default():
    assert spec("optimal_grouping").method["arguments"] == {"networks": 2, "train": "uniform", "single_cost": 1.0}
    assert "0.5" in (OptimalGrouping.__doc__ or "")
