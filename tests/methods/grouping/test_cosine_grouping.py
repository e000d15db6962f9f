"""Cosine grouping: one run measures cosines of gradients, the groups are chosen as by TAG."""

from __future__ import annotations

from mtlbench import registry
from tests.support.grouping_plans import TASKS, drive, expected, spec, told

COSINES = [[1.0, 0.1, -0.2, 0.4], [0.1, 1.0, 0.3, -0.1], [-0.2, 0.3, 1.0, 0.05], [0.4, -0.1, 0.05, 1.0]]


def test_near_gradients_share_a_network():
    line = spec("cosine_grouping", every=5)
    (first, second), ending = drive(line, told(COSINES))
    probe = line.with_method(registry.record("gradient_affinity", every=5))
    assert [run.run_id for run in first] == [probe.run_id] == ending.record["search_runs"]
    groups = [["kind", "mean"], ["shape", "far"]]
    assert ending.record["groups"] == groups
    assert [run.run_id for run in second] == [expected(line, *group) for group in groups]
    assert ending.record["affinity"] == {"tasks": TASKS, "values": COSINES, "what": "mean cosine of gradients"}


def test_its_groups_are_the_same_runs_as_those_of_tag():
    ids = [[run.run_id for run in drive(spec(name), told(COSINES))[0][1]] for name in ("tag", "cosine_grouping")]
    assert ids[0] == ids[1]
