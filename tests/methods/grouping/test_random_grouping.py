"""Random grouping: a partition drawn from the seed, trained by ordinary runs; and what every grouping refuses."""

from __future__ import annotations

import pytest

from mtlbench.errors import MethodError
from mtlbench.testing import toy_spec
from tests.support.grouping_plans import TASKS, begin, drive, expected, spec


def nothing(run):
    return {}


@pytest.mark.parametrize("networks", [1, 2, 3, 4])
def test_a_partition_in_one_stage(networks):
    line = spec("random_grouping", networks=networks)
    (stage,), ending = drive(line, nothing)
    groups = ending.record["groups"]
    assert len(groups) == networks and sorted(task for group in groups for task in group) == sorted(TASKS)
    assert [run.run_id for run in stage] == [expected(line, *group) for group in groups]
    for index, group in enumerate(groups):
        for task in group:
            assert ending.record["serves"][task] == index and ending.serving[task] == stage[index].run_id


def test_the_record_tells_what_was_not_searched():
    _, ending = drive(spec("random_grouping"), nothing)
    rest = {key: value for key, value in ending.record.items() if key not in ("groups", "serves")}
    assert rest == {"kind": "grouping", "networks": 2, "search_runs": [], "predicted": [], "note": ""}


def test_seeds_draw_their_own_groups():
    drawn = {str(drive(spec("random_grouping", seed=seed), nothing)[1].record["groups"]) for seed in range(12)}
    assert len(drawn) == 3, "the three ways to halve four tasks"


def test_groups_are_trained_as_asked():
    line = spec("random_grouping", train="pcgrad", networks=3)
    (stage,), ending = drive(line, nothing)
    assert sorted(run.method["name"] for run in stage) == ["pcgrad", "single_task", "single_task"]
    assert [run.run_id for run in stage] == [expected(line, *g, train="pcgrad") for g in ending.record["groups"]]


# ---- what every grouping refuses -----------------------------------------------------------------------------------


def test_more_networks_than_tasks_are_as_many_as_tasks():
    line = spec("random_grouping", networks=9)
    (stage,), ending = drive(line, nothing)
    assert {run.run_id for run in stage} == {expected(line, task) for task in TASKS}
    assert ending.record["networks"] == 4


@pytest.mark.parametrize("networks", [0, -1])
def test_no_network_is_refused(networks):
    with pytest.raises(MethodError, match=f"networks of a grouping method must be .*at least 1. Found {networks}"):
        begin(spec("random_grouping", networks=networks))


def test_one_task_is_refused():
    with pytest.raises(MethodError, match="at least two tasks. random_grouping found far. Use single_task"):
        begin(spec("random_grouping", tasks=["far"]))


def test_an_unknown_way_to_train_is_refused():
    with pytest.raises(MethodError, match="'pcgard'. Did you mean 'pcgrad'"):
        begin(spec("random_grouping", train="pcgard"))


@pytest.mark.parametrize("train", ["single_task", "tag"])
def test_a_plan_cannot_train_a_group(train):
    with pytest.raises(MethodError, match=f"train must .* in one run. {train} needs several"):
        begin(spec("random_grouping", train=train))


def test_a_balancer_beside_it_is_refused():
    with pytest.raises(MethodError, match="given the balancer pcgrad. Write train: pcgrad"):
        begin(toy_spec("random_grouping", balancer="pcgrad"))
