"""The floor in the report: what it marks, what it leaves alone, and the share of the gap that rows close."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from mtlbench.report import build, columns
from mtlbench.report.formatting import MARK
from mtlbench.report.tables.floor import closed, not_better
from mtlbench.report.views import files
from mtlbench.report.views.tables import COMPARED
from mtlbench.report.views.terminal import show_board
from tests.report.test_conditions import ABOUT, board_of
from tests.report.test_report import SEGDEPTH, row_of, study_of

SEEDS = (0, 1, 2)
TABLE = {
    # semseg: higher is better, floor 0.2; depth: lower is better, floor 0.6.
    "single_task": [(0.50, 0.58), (0.52, 0.62), (0.51, 0.60)],
    "uniform": [(0.40, 0.30), (0.44, 0.33), (0.42, 0.27)],
    "low": [(0.19, 0.20), (0.21, 0.21), (0.22, 0.20)],
    "floor": [(0.20, 0.60)] * 3,
}


@pytest.fixture
def board():
    return build(*study_of(TABLE, SEEDS, SEGDEPTH))


def lines(board):
    """Returns the terminal's table as words by label."""
    stream = io.StringIO()
    show_board(board, Console(file=stream, width=250))
    return stream.getvalue()


def summaries(board):
    """Returns the lines of the CSV that are over all seeds."""
    return [line for line in csv.DictReader(io.StringIO(files.tidy_csv(board))) if not line["seed"]]


# ---- what is not better ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "floor", "higher", "expected"),
    [
        ({0: 0.3}, {0: 0.2}, True, False),
        ({0: 0.2}, {0: 0.2}, True, True),
        ({0: 0.1}, {0: 0.2}, False, False),
        ({0: 0.3}, {0: 0.2}, False, True),
        # The mean is above, the interval of the difference is not.
        ({0: 0.30, 1: 0.21, 2: 0.22}, {0: 0.2, 1: 0.2, 2: 0.2}, True, True),
        ({0: 0.30, 1: 0.31, 2: 0.32}, {0: 0.2, 1: 0.2, 2: 0.2}, True, False),
        ({0: 0.30, 1: 0.31, 2: 0.32}, {0: 0.4, 1: 0.4, 2: 0.4}, False, False),
        ({0: 0.39, 1: 0.31, 2: 0.32}, {0: 0.4, 1: 0.4, 2: 0.4}, False, True),
        # Paired by seed: each seed is above its own floor by the same.
        ({0: 0.3, 1: 0.6, 2: 0.9}, {0: 0.2, 1: 0.5, 2: 0.8}, True, False),
        ({0: 0.3}, {1: 0.2}, True, False),
        ({}, {}, True, False),
    ],
)
def test_not_better_than_the_floor(ours, floor, higher, expected):
    assert not_better(ours, floor, higher) == expected


def test_only_scores_at_the_floor_are_marked(board):
    marked = {row.label: {task for task, _ in row.at_floor} for row in board.rows}
    assert marked == {"single_task": {"depth"}, "uniform": set(), "low": {"semseg"}, "floor": set()}
    text = lines(board)
    assert f"0.600{MARK}" in text and f"0.207{MARK}" in text
    assert f"0.420{MARK}" not in text and f"0.200{MARK}" not in text
    assert any(note.startswith(f"{MARK} Not significantly better than the floor") for note in board.notes)


# ---- the gap --------------------------------------------------------------------------------------------------------


def test_the_closed_share_of_the_gap():
    assert closed({0: 0.5, 1: 0.2}, {0: 0.2, 1: 0.2}, 1.0) == pytest.approx({0: 37.5, 1: 0.0})
    assert closed({0: 0.3, 1: 0.9}, {0: 0.6, 1: 0.6}, 0.0) == pytest.approx({0: 50.0, 1: -50.0})
    assert closed({0: 1.0}, {0: 1.0}, 1.0) == {}, "nothing is left to close"


def test_the_gap_is_the_mean_over_tasks(board):
    uniform = row_of(board, "uniform")
    assert uniform.gaps["semseg"].mean == pytest.approx(100 * 0.22 / 0.8)
    assert uniform.gaps["depth"].mean == pytest.approx(50)
    assert uniform.gap.mean == pytest.approx((27.5 + 50) / 2)
    assert uniform.gap.n == 3 and row_of(board, "floor").gap.mean == 0
    found = {(x["label"], x["quantity"], x["protocol"]): x for x in summaries(board)}
    assert float(found["uniform", "semseg", "gap_closed@1"]["mean"]) == pytest.approx(27.5)
    assert float(found["uniform", "gap_closed", "gap_closed@1"]["mean"]) == pytest.approx(38.75)
    assert "gap % ↑" in lines(board) and "38.8" in lines(board)


def test_another_best_value_than_one_or_zero():
    study, results = study_of(TABLE, SEEDS, SEGDEPTH)
    study["tasks"]["depth"]["best"] = 0.1
    assert row_of(build(study, results), "uniform").gaps["depth"].mean == pytest.approx(60)


def test_a_row_with_a_missing_cell_has_no_mean_gap():
    table = {**TABLE, "uniform": [*TABLE["uniform"][:2], None]}
    row = row_of(build(*study_of(table, SEEDS, SEGDEPTH)), "uniform")
    assert row.gap is None and row.gaps["depth"].n == 2


# ---- a row that takes no part ---------------------------------------------------------------------------------------


def test_the_floor_is_last_and_changes_no_rank_and_no_p_value(board):
    plain = build(*study_of({k: v for k, v in TABLE.items() if k != "floor"}, SEEDS, SEGDEPTH))
    assert [(r.label, r.rank) for r in board.rows] == [*((r.label, r.rank) for r in plain.rows), ("floor", None)]
    assert row_of(board, "floor").delta is not None
    seen, known = ([(c.label, c.reference, c.p_holm) for c in b.comparisons] for b in (board, plain))
    assert seen == known and seen


def test_the_floor_is_never_the_best_of_a_column():
    table = {**TABLE, "floor": [(0.9, 0.1)] * 3}
    board = build(*study_of(table, SEEDS, SEGDEPTH))
    for part in columns.leaderboard_grid(board):
        best = [row.label for row, cell in zip(board.rows, part.cells, strict=True) if cell.best]
        assert "floor" not in best
        if part.head.startswith(("semseg", "depth", "Δm", "gap")):
            assert len(best) == 1, part.head


def test_without_the_floor_nothing_is_said_of_it():
    board = build(*study_of({k: v for k, v in TABLE.items() if k != "floor"}, SEEDS, SEGDEPTH))
    assert not any(row.at_floor or row.gaps or row.gap or row.unfounded for row in board.rows)
    text = lines(board) + files.markdown(board) + files.latex(board)
    assert "gap %" not in text and MARK not in text and "dagger" not in text and "floor" not in text
    assert not board.footnotes and "yes" not in files.tidy_csv(board)


def test_a_kind_without_a_floor_is_named_and_leaves_the_row_complete():
    study, results = study_of(TABLE, SEEDS, SEGDEPTH)
    study["tasks"]["depth"]["floor"] = False
    for entry in study["rows"]:
        if entry["label"] == "floor":
            del entry["serving"]["depth"]
            del results[entry["runs"][0]]["scores"]["depth"]
    board = build(study, results)
    floor, uniform = row_of(board, "floor"), row_of(board, "uniform")
    assert floor.seeds == SEEDS and floor.delta is None and floor.gap.mean == 0
    assert list(uniform.gaps) == ["semseg"] and uniform.gap.mean == pytest.approx(27.5)
    assert any("No floor: depth" in note for note in board.notes)


def test_a_floor_that_is_not_done_marks_nothing():
    board = build(*study_of({**TABLE, "floor": [None] * 3}, SEEDS, SEGDEPTH))
    assert not any(row.at_floor or row.gaps for row in board.rows) and MARK not in lines(board)


# ---- a baseline at the floor ----------------------------------------------------------------------------------------


def test_gains_over_a_baseline_at_the_floor_are_marked(board):
    assert all(row.unfounded for row in board.rows)
    (note,) = [note for note in board.notes if note.startswith(f"{MARK} Δm")]
    assert "single_task" in note and "depth" in note and "semseg" not in note
    assert board.comparisons and all(c.unfounded for c in board.comparisons)
    part = next(p for p in columns.grid(COMPARED, board.comparisons) if p.head == "difference in Δm")
    assert all(cell.mark == MARK for cell in part.cells)


def test_a_baseline_above_the_floor_carries_no_mark():
    table = {**TABLE, "single_task": [(0.50, 0.28), (0.52, 0.32), (0.51, 0.30)]}
    board = build(*study_of(table, SEEDS, SEGDEPTH))
    assert not any(row.unfounded for row in board.rows) and not any(c.unfounded for c in board.comparisons)
    assert not any(note.startswith(f"{MARK} Δm") for note in board.notes)
    assert row_of(board, "low").at_floor, "scores still carry it"


# ---- every output ---------------------------------------------------------------------------------------------------


def test_every_output_has_marks_and_footnotes(board):
    assert len(board.footnotes) == 2
    markdown, latex, text = files.markdown(board), files.latex(board), lines(board)
    for note in board.footnotes:
        assert note in text
    assert f"0.600{MARK}" in markdown and markdown.count(f"- {MARK} ") == 2
    assert r"0.600$^\dagger$" in latex and latex.count(r"\multicolumn{") == 2
    assert latex.index(r"\bottomrule") < latex.index(r"\multicolumn{") < latex.rindex(r"\end{tabular}")
    found = {(x["label"], x["quantity"], x["protocol"]): x["at_floor"] for x in summaries(board)}
    assert found["single_task", "depth", "depth_rmse@1"] == found["low", "semseg", "semseg_miou@1"] == "yes"
    assert found["uniform", "delta_m", "delta_m@1"] == "yes"
    assert found["uniform", "depth", "depth_rmse@1"] == found["floor", "depth", "depth_rmse@1"] == ""


# ---- conditions -----------------------------------------------------------------------------------------------------


def test_cells_of_few_labels_are_compared_with_the_floor_of_the_same_labels():
    table = {
        "uniform": {"1 %": [(0.5, 0.70), (0.5, 0.72), (0.5, 0.71)], "10 %": [(0.5, 0.40), (0.5, 0.42), (0.5, 0.41)]},
        "task_moe": {"1 %": [(0.5, 0.50), (0.5, 0.52), (0.5, 0.51)], "10 %": [(0.5, 0.40), (0.5, 0.42), (0.5, 0.40)]},
        "floor": {"1 %": [(0.2, 0.70)] * 3, "10 %": [(0.2, 0.60)] * 3},
    }
    board = board_of(table, ABOUT)
    at = {row.label: set(row.at_floor) for row in board.rows}
    assert at == {"uniform": {"1 %"}, "task_moe": set(), "floor": set()}
    assert [row.label for row in board.rows][-1] == "floor" and board.reference == "uniform"
    assert {c.label for _, c in board.comparisons} == {"task_moe"}
    assert [(condition, c.unfounded) for condition, c in board.comparisons] == [("1 %", True), ("10 %", False)]
    text, markdown, latex = lines(board), files.markdown(board), files.latex(board)
    assert f"0.710{MARK}" in text and f"0.710{MARK}" in markdown and r"0.710$^\dagger$" in latex
    assert f"−0.200{MARK}" in text and f"0.410{MARK}" not in text
    assert row_of(board, "task_moe").gaps["10 %"].mean == pytest.approx(100 * (0.6 - 0.4066666667) / 0.6)
    found = {(x["label"], x["condition"], x["quantity"]): x for x in summaries(board)}
    assert found["uniform", "1 %", "depth"]["at_floor"] == "yes" and not found["uniform", "10 %", "depth"]["at_floor"]
    assert float(found["task_moe", "1 %", "gap_closed"]["mean"]) == pytest.approx(100 * (0.7 - 0.51) / 0.7)


def test_a_drop_from_a_score_at_the_floor_is_marked():
    near = [(0.21, 0.5, 20.0), (0.20, 0.5, 21.0), (0.19, 0.5, 20.0)]
    far = [(0.40, 0.5, 20.0), (0.42, 0.5, 21.0), (0.41, 0.5, 20.0)]
    none = [(0.20, 0.6, 30.0)] * 3
    table = {
        "uniform": {"without": near, "with": near},
        "task_moe": {"without": far, "with": far},
        "floor": {"without": none, "with": none},
    }
    about = {"text": "", "columns": ["with"], "base": "without", "ignored": "depth"}
    board = board_of(table, about)
    assert {row.label: set(row.at_floor) for row in board.rows} == {
        "uniform": {"with"},
        "task_moe": set(),
        "floor": set(),
    }
    (note,) = board.footnotes
    assert "semseg" in note and "depth" not in note
    assert row_of(board, "floor").values["with"] == {0: 0.0, 1: 0.0, 2: 0.0}
