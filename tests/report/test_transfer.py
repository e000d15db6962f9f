"""The tables of transfer between groups of tasks, against numbers computed by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from mtlbench.report.tables import conditions
from mtlbench.report.views import tables
from mtlbench.runs import shapes
from tests.report.test_conditions import study_of

ABOUT = {
    "kind": "transfer",
    "columns": ["a", "b", "a + b"],
    "base": "no source tasks",
    "ignored": ["semseg"],
    "of": "the targets",
    "text": "transferred",
    "transfer": {
        "tasks": {"no source tasks": 0, "a": 1, "b": 2, "a + b": 3},
        "all": "a + b",
        "own": {"depth": "a"},
    },
}
"""Targets are depth, whose own group is a, and normals, which no group lists; lower is better for both."""

# Scores of (semseg, depth, normals) for two seeds. The means without source tasks are 0.8 and 20.
TABLE = {
    "dense": {
        "no source tasks": [(0.5, 0.8, 20.0), (0.5, 0.8, 20.0)],
        "a": [(0.5, 0.6, 20.0), (0.5, 0.7, 20.0)],  # depth gains 25 and 12.5 %
        "b": [(0.5, 0.8, 18.0), (0.5, 0.8, 16.0)],  # normals gain 10 and 20 %
        "a + b": [(0.5, 0.5, 19.0), (0.5, 0.7, 17.0)],  # depth gains 37.5 and 12.5 %, normals 5 and 15 %
    }
}


def board_of(table: dict[str, Any], seeds: int = 2) -> Any:
    study, results, errors = study_of(table, ABOUT, seeds=seeds)
    assert shapes.STUDY(study)
    return conditions.build(study, results, None, errors)


def test_scores_gains_slopes_and_gaps_by_hand() -> None:
    transfer = board_of(TABLE).transfer
    assert [(line.groups, line.tasks) for line in transfer.combinations] == [
        ("no source tasks", 0), ("a", 1), ("b", 2), ("a + b", 3)
    ]  # fmt: skip
    after_a = transfer.combinations[1]
    assert set(after_a.scores) == {"depth", "normals"} == set(transfer.targets)
    assert after_a.scores["depth"].mean == pytest.approx(0.65)
    assert after_a.scores["depth"].std == pytest.approx(math.sqrt(0.005))
    assert [line.gain and pytest.approx(line.gain.mean) for line in transfer.combinations] == [
        None, (25 + 12.5) / 4, (10 + 20) / 4, (37.5 + 12.5 + 5 + 15) / 4
    ]  # fmt: skip
    depth, normals, mean = transfer.trends
    # The slope over 1, 2 and 3 tasks is half the difference of the last and the first.
    assert depth.slope.mean == pytest.approx((12.5 / 2 + 0) / 2) and depth.slope.n == 2
    assert normals.slope.mean == pytest.approx((5 / 2 + 15 / 2) / 2)
    assert mean.slope.mean == pytest.approx((depth.slope.mean + normals.slope.mean) / 2)
    assert depth.gap.estimate.mean == pytest.approx(6.25), "37.5 − 25 and 12.5 − 12.5"
    assert normals.gap is None and mean.gap.estimate == depth.gap.estimate and mean.target == ""


def test_the_drop_of_the_table_is_the_gain_with_the_other_sign() -> None:
    board = board_of(TABLE)
    (row,) = board.rows
    assert board.quantity == "drop of the targets in % ↓"
    for line in board.transfer.combinations[1:]:
        found = row.values[line.groups].values()
        assert sum(found) / 2 == pytest.approx(-line.gain.mean)


def test_what_is_missing_leaves_cells_blank() -> None:
    table = {"dense": {**TABLE["dense"], "b": [(0.5, 0.8, 18.0), None]}}
    transfer = board_of(table).transfer
    assert transfer.combinations[2].scores["normals"].n == 1
    assert [trend.slope.n for trend in transfer.trends] == [1, 1, 1], "the seed with every combination"
    none = board_of({"dense": {**TABLE["dense"], "b": [None, None]}}).transfer
    assert [trend.slope for trend in none.trends] == [None] * 3 and none.trends[0].gap is not None


def test_both_tables_are_shown() -> None:
    scores, trends = tables.sections(board_of(TABLE))[-2:]
    found = {part.head: [str(cell) for cell in part.cells] for part in scores.grid}
    assert found["source groups"] == ["no source tasks", "a", "b", "a + b"] and found["tasks"] == ["0", "1", "2", "3"]
    assert found["depth depth_rmse@1 [m] ↓"][1] == "0.650 ± 0.071"
    assert found["gain % ↑"][:2] == ["–", "+9.38 ± 4.42"]
    found = {part.head: [str(cell) for cell in part.cells] for part in trends.grid}
    assert found["target"] == ["depth", "normals", "mean of all"] and found["all − own %"][1] == "–"
    assert found["slope % per task"][0].startswith("+3.12")


@pytest.mark.parametrize("damage", [{"tasks": {"a": "one"}}, {"all": 3}, {"own": ["depth"]}])
def test_a_damaged_record_is_noticed(damage: dict[str, Any]) -> None:
    study = json.loads(json.dumps(study_of(TABLE, ABOUT, seeds=2)[0]))
    assert shapes.STUDY(study)
    study["scenario"]["transfer"] |= damage
    assert not shapes.STUDY(study)
