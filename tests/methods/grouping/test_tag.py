"""TAG: one run measures affinity, the groups that it favours are trained."""

from __future__ import annotations

import math

import pytest

from mtlbench import registry
from mtlbench.errors import MethodError
from mtlbench.grouping import best_cover, from_pairs, subsets
from tests.support.grouping_plans import TASKS, begin, drive, expected, spec, told

OWN = 1e9  # What a task does to itself must not matter.
FRIENDS = [  # [recipient][source]: kind and far help each other, so do shape and mean; else harm.
    [OWN, -1.0, 0.5, -1.0],
    [-1.0, OWN, -1.0, 0.25],
    [0.5, -1.0, OWN, -1.0],
    [-1.0, 0.25, -1.0, OWN],
]


def test_one_run_measures_then_groups_are_trained():
    line = spec("tag")
    (first, second), ending = drive(line, told(FRIENDS))
    probe = line.with_method(registry.record("inter_task_affinity", every=10))
    assert [run.run_id for run in first] == [probe.run_id] and list(first[0].tasks) == TASKS
    groups = [["kind", "far"], ["shape", "mean"]]
    assert ending.record["groups"] == groups and ending.record["search_runs"] == [probe.run_id]
    assert [run.run_id for run in second] == [expected(line, *group) for group in groups]
    assert ending.serving == {task: expected(line, *group) for group in groups for task in group}


def test_measuring_is_shared_and_adjustable():
    ids = {drive(spec("tag", networks=n), told(FRIENDS))[0][0][0].run_id for n in (1, 2, 3)}
    assert len(ids) == 1
    (other, _), _ = drive(spec("tag", every=3), told(FRIENDS))
    assert other[0].method["arguments"]["every"] == 3


def test_the_best_by_affinity_serves():
    """far is in two groups: kind gives it more than the others do."""
    affinity = [[OWN, -9.0, 1.0, -9.0], [-9.0, OWN, 0.9, 0.9], [1.0, 0.2, OWN, 0.2], [-9.0, 0.9, 0.9, OWN]]
    record = drive(spec("tag"), told(affinity))[1].record
    assert record["groups"] == [["kind", "far"], ["shape", "far", "mean"]] or record["groups"] == [
        ["kind", "far"],
        ["shape", "mean"],
    ]
    assert record["serves"]["far"] == 0 and record["serves"]["shape"] == record["serves"]["mean"] == 1


def test_recipients_and_sources_are_not_confused():
    """mean is taught by kind, kind suffers from mean: together only mean has what it wants."""
    affinity = [[0.2] * 4 for _ in range(4)]
    affinity[3][0], affinity[0][3] = 1.0, -0.4
    record = drive(spec("tag"), told(affinity))[1].record
    predicted = {tuple(entry["group"]): entry["values"] for entry in record["predicted"]}
    assert predicted["kind", "mean"] == {"kind": -0.4, "mean": 1.0}
    assert record["groups"] == [["kind", "shape", "far"], ["kind", "mean"]]
    assert record["serves"] == {"kind": 0, "shape": 0, "far": 0, "mean": 1}


def test_goldens_of_the_specification():
    """½‖x − t_i‖² from x = 0, targets (1,0), (0,1), (−1,0), step 0.1: rows are sources."""
    by_source = [[0.19, -0.01, -0.21], [-0.01, 0.19, -0.01], [-0.21, -0.01, 0.19]]
    three = TASKS[:3]
    affinity = [list(row) for row in zip(*by_source, strict=True)]
    record = drive(spec("tag", tasks=three), told(affinity))[1].record
    predicted = {tuple(entry["group"]): entry["values"] for entry in record["predicted"]}
    assert predicted["kind", "shape"] == pytest.approx({"kind": -0.01, "shape": -0.01})
    assert predicted[tuple(three)] == pytest.approx({"kind": -0.11, "shape": -0.01, "far": -0.11})
    assert record["groups"] == [["kind", "shape"], ["shape", "far"]], "opposed tasks stay apart"


def test_the_record():
    record = drive(spec("tag"), told(FRIENDS))[1].record
    assert record["affinity"] == {"tasks": TASKS, "values": FRIENDS, "what": "TAG inter-task affinity"}
    predicted = {tuple(entry["group"]): entry["values"] for entry in record["predicted"]}
    assert list(predicted) == subsets(TASKS) and all(predicted[task,] == {} for task in TASKS)
    assert (record["kind"], record["networks"], record["note"]) == ("grouping", 2, "")


def test_alone_only_where_nothing_else_is_left():
    hostile = [[OWN if i == j else -5.0 for j in range(4)] for i in range(4)]
    for networks in (1, 2, 3, 4):
        groups = drive(spec("tag", networks=networks), told(hostile))[1].record["groups"]
        assert all(len(group) > 1 for group in groups)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_selector(seed):
    import numpy as np

    affinity = np.random.default_rng(seed).normal(size=(4, 4)).tolist()
    pairs = {(a, b): affinity[i][j] for i, a in enumerate(TASKS) for j, b in enumerate(TASKS)}
    found = best_cover(TASKS, from_pairs(subsets(TASKS), pairs, -1e6), 3)
    record = drive(spec("tag", networks=3), told(affinity))[1].record
    assert [tuple(group) for group in record["groups"]] == list(found.groups) and record["serves"] == found.serves


@pytest.mark.parametrize("unknown", [None, math.nan])
def test_a_pair_that_was_never_measured_is_named(unknown):
    affinity = [list(row) for row in FRIENDS]
    affinity[2][1] = unknown
    with pytest.raises(MethodError, match="has none for shape → far: "):
        drive(spec("tag"), told(affinity))


def test_the_diagonal_may_be_unknown():
    affinity = [[None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(FRIENDS)]
    record = drive(spec("tag"), told(affinity))[1].record
    assert record["groups"] == [["kind", "far"], ["shape", "mean"]]
    assert [row[i] for i, row in enumerate(record["affinity"]["values"])] == [None] * 4


@pytest.mark.parametrize("summary", [{}, {"affinity": [[0.0] * 3] * 3}])
def test_a_run_that_tells_nothing_is_refused(summary):
    plan = begin(spec("tag"))
    next(plan)
    with pytest.raises(MethodError, match="affinity table of 4 × 4 tasks"):
        plan.send([{"summary": summary}])
