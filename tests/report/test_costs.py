"""The table of costs: what stands where, how runs are merged, and the two kinds of time."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from mtlbench.report import columns, load
from mtlbench.report.views import files, html, tables
from mtlbench.report.views.terminal import show_board
from mtlbench.study import costs
from tests.support.fake_study import TASKS, write_study

NEW = {"training_flops": 3e15, "flops": 2e9}


@pytest.fixture
def folder(tmp_path):
    """Returns a results folder whose runs have all costs; in `uniform`, every task has other ones."""
    folder = write_study(tmp_path / "scenes", ["single_task", "uniform", "pcgrad"])
    for path in folder.glob("*/result.json"):
        record = json.loads(path.read_text())
        alone = {task: 1e6 * (1 + index) for index, task in enumerate(TASKS) if task in record["tasks"]}
        record["cost"] |= {**NEW, "flops_alone": alone, "parameters_active": alone}
        path.write_text(json.dumps(record))
    return folder


def measure(folder, ratio=1.5, label="pcgrad", key="k"):
    study = json.loads((folder / "study.json").read_text())
    study["cost_keys"] = {"pcgrad": "k"}
    (folder / "study.json").write_text(json.dumps(study))
    entry = {"ratio": ratio, "low": 1.25, "high": 1.75, "seconds_ratio": 1.5, "flops_ratio": 3.0, "pairs": 10}
    costs.store(folder, "scenes", {label: {"key": key, "reference": "uniform", "created": "now", **entry}})


def shown(folder, width=250):
    stream = io.StringIO()
    show_board(load(folder)[1], Console(file=stream, width=width))
    return stream.getvalue()


def heads(grid):
    return [part.head for part in grid]


def cells(grid, head):
    names, column = grid[0].cells, next(part for part in grid if part.head == head).cells
    return {str(name): str(cell) for name, cell in zip(names, column, strict=True)}


def test_the_main_table_has_some_costs_and_that_of_costs_all(folder):
    _, board = load(folder)
    main, (section, *_) = tables.main(board, "terminal"), tables.sections(board, "terminal")
    assert [h for h in heads(main) if h in heads(section.grid)[1:]] == ["s/step", "params", "train FLOPs", "train"]
    every = [column.head for column in columns.COSTS]
    assert section.title == "Costs" and heads(section.grid) == ["method", *every]
    *definitions, several = section.notes
    assert [note.split(": ")[0] for note in definitions] == every, "each has its definition"
    assert several.startswith("A row with several runs: sum of s/step, params, FLOPs/image")
    for text in (shown(folder), files.markdown(board), html.render(*load(folder))):
        assert "FLOPs of all forward and backward passes" in text and "3P" in text


def test_costs_per_task_are_means_over_tasks_of_the_run_that_serves_each(folder):
    _, board = load(folder)
    found = cells(tables.sections(board)[0].grid, "active")
    assert found["uniform"] == found["single_task"] == "3.5M"  # the mean of 1, ..., 6
    row = next(row for row in board.rows if row.label == "single_task")
    assert row.cost.values["flops"] == 6 * NEW["flops"] and row.cost.values["flops_alone"] == 3.5e6


def test_training_flops_count_all_runs_of_a_row(folder):
    study = json.loads((folder / "study.json").read_text())
    for row in study["rows"]:
        if row["label"] == "uniform":  # as if pcgrad's run had prepared it
            row["runs"].append(f"pcgrad-s{row['seed']}-0a1b")
    (folder / "study.json").write_text(json.dumps(study))
    values = next(row for row in load(folder)[1].rows if row.label == "uniform").cost.values
    assert values["training_flops"] == 2 * NEW["training_flops"] and values["flops"] == NEW["flops"]


def test_results_without_the_new_costs_have_no_blank_columns(tmp_path):
    _, board = load(write_study(tmp_path / "scenes", ["single_task", "uniform"]))
    grid = tables.sections(board)[0].grid
    assert heads(grid) == ["method", "s/step", "params", "steps", "GiB", "train"]
    assert "train FLOPs" not in heads(tables.main(board))


def test_time_in_pairs_stands_for_seconds_beside_scores(folder):
    assert "s/step was measured in the study's own runs" in shown(folder)
    measure(folder)
    _, board = load(folder)
    main, section = tables.main(board), tables.sections(board)[0]
    assert not {"s/step", "train"} & set(heads(main)) and {"s/step", "train", "time ×"} <= set(heads(section.grid))
    assert cells(section.grid, "time ×")["pcgrad"] == "1.50 [1.25, 1.75]"
    assert cells(main[1:], "time ×")["pcgrad"] == "1.50"
    assert cells(section.grid, "time ×")["uniform"] == "–"
    assert any(note.startswith("time ×: ") and "relative to those of uniform" in note for note in section.notes)
    text = shown(folder)
    assert "time × was measured in interleaved pairs" in text and "s/step was measured in the study's" not in text
    lines = list(csv.DictReader(io.StringIO(files.tidy_csv(board))))
    (ratio,) = [line for line in lines if line["quantity"] == "seconds_per_step_ratio"]
    assert (ratio["label"], ratio["mean"], ratio["low"], ratio["high"], ratio["n"]) == (
        "pcgrad", "1.5", "1.25", "1.75", "10",
    )  # fmt: skip


@pytest.mark.parametrize("changes", [{"key": "of another row"}, {"label": "gone"}, {"ratio": "damaged"}])
def test_other_measurements_are_ignored(folder, changes):
    measure(folder, **changes)
    assert "time ×" not in shown(folder) and "s/step was measured" in shown(folder)


def test_a_terminal_of_100_columns_shows_every_cost(folder):
    measure(folder)
    text = shown(folder, width=100)
    start = text.index("\nCosts\n")
    table = text[start:].split("\ntime ×: ")[0]
    assert max(map(len, table.splitlines())) <= 100
    assert all(head in table for head in heads(tables.sections(load(folder)[1], "terminal")[0].grid))
    assert table.count("pcgrad") == 2, "two pages, each with its methods"
