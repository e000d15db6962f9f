"""Optimal grouping: all subsets are trained, the best affordable choice on the validation split is kept."""

from __future__ import annotations

import math
from dataclasses import replace

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
    with pytest.raises(MethodError, match="single_cost must be in"):
        begin(spec("optimal_grouping", single_cost=cost))
    from mtlbench.training.build import build

    with pytest.raises(MethodError, match="single_cost must be in"):
        build(toy_spec("optimal_grouping", arguments={"single_cost": cost}))


def test_the_cost_of_a_single_network_is_ours_by_default():
    assert spec("optimal_grouping").method["arguments"] == {"networks": 2, "train": "uniform", "single_cost": 1.0}
    assert "0.5" in (OptimalGrouping.__doc__ or "")


def two_sizes(cost=0.15):
    """Returns results in which a small network of one task loses that share of the full one's score."""
    full, halved = gaining(lambda group, task: -0.5), gaining(lambda group, task: 0.0)

    def invent(run):
        result = full(run)
        if run.model["decoder_channels"] != 4:
            return result
        (task,) = run.tasks
        protocol = run.tasks[task]["protocols"][0]
        sign = 1 if protocol["higher_is_better"] else -1
        value = halved(run)["validation"][task][protocol["id"]] * (1 - sign * cost)
        return {**result, "validation": {task: {protocol["id"]: value}}}

    return invent


@pytest.mark.parametrize(
    ("networks", "small"),
    # Groups lose half, small networks 15 %: of three tasks at cost .5 each, b = 2 pays for one full network.
    [(1, None), (2, ["far", "mean"]), (3, [])],
)
def test_full_single_networks_beside_small_ones(networks, small):
    line = spec("optimal_grouping", tasks=THREE, networks=networks, single_cost=0.5, small={"decoder_channels": 4})
    (stage,), ending = drive(line, two_sizes())
    assert len(stage) == 7 + 3 and [run.model["decoder_channels"] for run in stage[7:]] == [4, 4, 4]
    assert ending.record["small_runs"] == [run.run_id for run in stage[7:]]
    if small is None:
        assert ending.record["groups"] == [THREE] and ending.record["small"] == []
        return
    assert ending.record["groups"] == [[task] for task in THREE] and ending.record["small"] == small
    for task, run in zip(THREE, stage[7:], strict=True):
        assert ending.serving[task] == (run.run_id if task in small else expected(line, task))


def test_what_small_networks_may_change():
    for small in ({}, {"image_size": [8, 8]}, [1]):
        with pytest.raises(MethodError, match="encoder, encoder_options, decoder_channels"):
            begin(spec("optimal_grouping", small=small)).send(None)
    line = spec("optimal_grouping", small={"encoder": "resnet10t"})
    pretrained = replace(line, model={**line.model, "weights": "timm:a1_in1k"})
    with pytest.raises(MethodError, match="Set weights: null"):
        begin(pretrained).send(None)


def test_without_small_networks_a_run_is_what_it_was():
    """The argument came later: suites of before keep their runs."""
    assert "small" not in spec("optimal_grouping").method["arguments"]
    assert spec("optimal_grouping", small=None).hash == spec("optimal_grouping").hash
    assert spec("optimal_grouping", small={"decoder_channels": 4}).hash != spec("optimal_grouping").hash
