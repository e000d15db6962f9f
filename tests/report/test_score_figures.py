"""Figures and the heat map of scores: every seed, the Pareto front, ranks, and colours that mean something."""

from __future__ import annotations

import numpy as np
import pytest

from mtlbench import visualise
from mtlbench.report import build
from mtlbench.report.figures.scores import cost, cost_axes, front, gains, ranks, seeds
from mtlbench.report.figures.style import BETTER, UNCERTAIN, WORSE
from mtlbench.report.views.heat import heat_map
from tests.report.test_report import SEGDEPTH, study_of
from tests.report.test_report_floor import SEEDS, TABLE

CLEAR = {
    # semseg: higher is better; depth: lower is better.
    "single_task": [(0.400, 0.60), (0.402, 0.61), (0.398, 0.59)],
    "good": [(0.440, 0.60), (0.443, 0.60), (0.438, 0.61)],
    "bad": [(0.360, 0.66), (0.361, 0.67), (0.358, 0.65)],
    "gappy": [(0.5, 0.5), None, None],
}


@pytest.fixture
def board():
    return build(*study_of(CLEAR, SEEDS, SEGDEPTH))


def diamonds(figure):
    return [trace for trace in figure.data if trace.marker and trace.marker.symbol == "diamond"]


def test_every_seed_is_a_circle_and_only_told_differences_are_coloured(board):
    figure = seeds(board)
    circles, (means,) = figure.data[0], diamonds(figure)
    values = {row.label: row.deltas for row in board.rows if row.delta}
    assert len(circles.x) == 9 == sum(map(len, values.values()))
    assert circles.x == pytest.approx(
        [values[y][int(s)] for y, s in zip(circles.y, circles.customdata, strict=True)], rel=1e-4
    )
    colours = dict(zip(means.y, means.marker.color, strict=True))
    assert colours == {"single_task": UNCERTAIN, "good": BETTER, "bad": WORSE}


def test_gains_show_the_seeds_that_their_means_are_of(board):
    figure = gains(board)
    for mean, circles in zip(
        diamonds(figure), [t for t in figure.data if t.marker.symbol == "circle-open"], strict=True
    ):
        for label, value in zip(mean.y, mean.x, strict=True):
            own = [x for x, y in zip(circles.x, circles.y, strict=True) if y == label]
            assert np.mean(own) == pytest.approx(value, rel=1e-3, abs=1e-3)


def test_the_heat_map_colours_what_the_intervals_tell(board):
    heat = heat_map(board)
    cells = {(label, task): cell for label, row in heat.rows for task, cell in zip(heat.tasks, row, strict=True)}
    looks = {key: cell.look for key, cell in cells.items()}
    assert looks["good", "semseg"] == "better" and looks["good", "depth"] == ""
    assert looks["bad", "semseg"] == looks["bad", "depth"] == "worse"
    assert looks["gappy", "semseg"] == "", "one seed tells nothing"
    assert cells["good", "semseg"].text.endswith("▲") and cells["bad", "depth"].text.endswith("▼"), (
        "not by colour alone"
    )
    assert cells["bad", "semseg"].number == pytest.approx(
        next(r for r in board.rows if r.label == "bad").gains["semseg"].estimate.mean
    )


def test_nothing_at_the_floor_is_coloured():
    board = build(*study_of(TABLE, SEEDS, SEGDEPTH))
    heat = heat_map(board)
    cells = {(label, task): cell for label, row in heat.rows for task, cell in zip(heat.tasks, row, strict=True)}
    # The baseline is at the floor in depth, and `low` in semseg.
    assert {cells[key].look for key in cells if key[1] == "depth"} == {""} == {cells["low", "semseg"].look}
    assert cells["low", "semseg"].text.endswith("†") and cells["uniform", "semseg"].look == "worse"
    for figure in (seeds(board), cost(board)):
        colours = figure.data[1].marker.color
        assert set(colours) == {UNCERTAIN}, "Δm over a baseline at the floor supports no claim"
    assert {colour for trace in diamonds(gains(board)) for colour in trace.marker.color} == {WORSE, UNCERTAIN}


def test_no_row_on_the_front_is_beaten_in_both():
    points = [("a", 1.0, 1.0), ("b", 2.0, 0.5), ("c", 2.0, 3.0), ("d", 3.0, 3.0), ("e", 4.0, 4.0), ("f", 0.5, -1.0)]
    assert [name for name, *_ in front(points)] == ["f", "a", "c", "e"]


def test_costs_in_which_rows_do_not_differ_are_no_choice(board):
    study, results = study_of(CLEAR, SEEDS, SEGDEPTH)
    for run, record in results.items():
        record["cost"]["seconds_per_step"] = 4.0 if run.startswith("good") else 0.1
    axes = {axis["title"]: axis for axis in cost_axes(build(study, results))}
    assert "optimiser steps" not in axes, "all have as many"
    time = axes["seconds per optimiser step, without diagnostics"]
    assert time["log"] and len(time["values"]) == 3
    figure = cost(build(study, results))
    assert figure.layout.meta["costs"][0]["title"] == figure.layout.xaxis.title.text == time["title"]


def test_ranks_are_means_over_tasks_and_seeds(board):
    figure = ranks(board)
    (means,) = diamonds(figure)
    found = dict(zip(means.y, means.x, strict=True))
    # semseg: good 1, single_task 2, bad 3 in every seed. depth: the first two tie, then each is first once.
    assert found == pytest.approx({"good": (1 + 1.5) / 2, "single_task": (2 + 1.5) / 2, "bad": 3.0})
    assert list(means.y)[-1] == "good", "the best is on top"


@pytest.mark.parametrize(
    ("kind", "truth", "prediction", "right"),
    [
        ("semantic_segmentation", [[1, 2], [255, 0]], [[1, 0], [1, 0]], [[True, False], [None, True]]),
        ("depth", [[[1.0, 2.0], [3.0, 255.0]]], [[[1.0, 4.0], [3.0, 1.0]]], [[True, False], [True, None]]),
        ("saliency", [[[1.0, 0.0], [1.0, 0.0]]], [[[1.0, 1.0], [1.0, 0.0]]], [[True, False], [True, True]]),
        ("normals", [[[0, 0.0]], [[0, 0.0]], [[1, 1.0]]], [[[0, 1.0]], [[0, 0.0]], [[2, 0.0]]], [[True, False]]),
    ],
)
def test_maps_of_errors_are_black_where_a_prediction_is_right(kind, truth, prediction, right):
    picture = visualise.error(kind, np.array(prediction), np.array(truth))
    for row, wanted in zip(picture, right, strict=True):
        for pixel, is_right in zip(row.astype(int), wanted, strict=True):
            if is_right is None:
                assert len(set(pixel)) == 1 and pixel[0] > 100, "grey stripes where there is no label"
            else:
                assert (pixel.sum() < 20) == is_right


def test_an_error_of_another_shape_or_kind_is_refused():
    with pytest.raises(ValueError, match="the same shape"):
        visualise.error("depth", np.zeros((1, 2, 2)), np.zeros((1, 3, 2)))
    with pytest.raises(ValueError, match="dense prediction"):
        visualise.error("classification", np.zeros(()), np.zeros(()))
