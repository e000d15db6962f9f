"""HOA: all pairs are trained, larger groups are means over their pairs, chosen on the validation split."""

from __future__ import annotations

import pytest

from mtlbench.grouping import subsets
from tests.support.grouping_plans import TASKS, drive, expected, gaining, spec

FRIENDS = ("kind", "far"), ("shape", "mean")


def gain(group, task):
    """A pair of friends gains a tenth, any other group loses a tenth."""
    return 0.1 if group in FRIENDS else -0.1


def test_singles_and_pairs_and_nothing_more_where_they_suffice():
    line = spec("hoa")
    (stage,), ending = drive(line, gaining(gain))
    assert [run.run_id for run in stage] == [expected(line, *group) for group in subsets(TASKS, 2)]
    assert len(stage) == 10
    assert [tuple(group) for group in ending.record["groups"]] == [*FRIENDS]
    assert ending.record["serves"] == {"kind": 0, "shape": 1, "far": 0, "mean": 1}
    assert ending.serving == {task: expected(line, *pair) for pair in FRIENDS for task in pair}
    assert len(ending.record["search_runs"]) == 8 and not set(ending.serving.values()) & {*ending.record["search_runs"]}


def test_a_larger_group_is_trained_when_it_is_chosen():
    line = spec("hoa", networks=1)
    stages, ending = drive(line, gaining(gain))
    assert [len(stage) for stage in stages] == [10, 1]
    assert ending.serving == dict.fromkeys(TASKS, expected(line, *TASKS))
    assert len(ending.record["search_runs"]) == 10


def test_predictions_are_means_over_pairs():
    _, ending = drive(spec("hoa"), gaining(gain))
    predicted = {tuple(entry["group"]): entry["values"] for entry in ending.record["predicted"]}
    assert list(predicted) == subsets(TASKS)
    assert predicted["kind",] == {"kind": 0.0}
    assert predicted["kind", "far"] == pytest.approx({"kind": 0.1, "far": 0.1})
    assert predicted["kind", "shape", "far"] == pytest.approx({"kind": 0.0, "shape": -0.1, "far": 0.0})
    assert predicted[tuple(TASKS)] == pytest.approx(dict.fromkeys(TASKS, -0.1 / 3))


def test_the_table_of_pairs_has_the_recipient_first():
    """Only ``kind`` gains, and only by ``far``."""
    _, ending = drive(spec("hoa"), gaining(lambda group, task: 0.1 if task == "kind" and "far" in group else 0.0))
    table = ending.record["affinity"]
    assert table["tasks"] == TASKS and table["what"]
    place = TASKS.index("kind"), TASKS.index("far")
    for i, row in enumerate(table["values"]):
        assert row == pytest.approx([0.1 if (i, j) == place else 0.0 for j in range(4)])


def test_validation_chooses_and_never_the_reported_scores():
    by_validation = drive(spec("hoa"), gaining(gain))[1].record
    assert by_validation["note"] == ""
    other = drive(spec("hoa"), gaining(gain, split="scores", other=1.0))[1].record
    assert other["groups"] != by_validation["groups"] and other["groups"] == [TASKS], "all equal: one network"


def test_without_a_further_split_the_record_says_so():
    def invent(run):
        return gaining(gain, split="scores")(run) | {"validation": None}

    found = drive(spec("hoa"), invent)[1].record
    assert [tuple(group) for group in found["groups"]] == [*FRIENDS] and "reported" in found["note"]
