"""Oracle grouping: chooses by the reported scores, and says so."""

from __future__ import annotations

from mtlbench.grouping import subsets
from tests.support.grouping_plans import TASKS, drive, expected, gaining, spec


def gain(group, task):
    return 0.1 if group in (("kind", "far"), ("shape", "far", "mean")) else -0.1


def test_the_reported_scores_choose():
    line = spec("oracle_grouping")
    (stage,), ending = drive(line, gaining(gain, split="scores"))
    assert [run.run_id for run in stage] == [expected(line, *group) for group in subsets(TASKS)]
    assert ending.record["groups"] == [["kind", "far"], ["shape", "far", "mean"]]
    assert ending.record["serves"] == {"kind": 0, "shape": 1, "far": 0, "mean": 1}
    assert "Upper bound" in ending.record["note"]


def test_it_predicts_nothing():
    assert drive(spec("oracle_grouping"), gaining(gain, split="scores"))[1].record["predicted"] == []


def test_validation_has_no_say():
    record = drive(spec("oracle_grouping"), gaining(gain, split="validation", other=1.0))[1].record
    assert record["groups"] == [TASKS]


def test_its_runs_are_those_of_optimal_grouping():
    one, other = (drive(spec(f"{name}_grouping"), gaining(gain))[0] for name in ("oracle", "optimal"))
    assert [[run.run_id for run in stage] for stage in one] == [[run.run_id for run in stage] for stage in other]
