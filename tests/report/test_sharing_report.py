"""Accuracy against computation and storage in the report: points by hand, figure, file."""

from __future__ import annotations

import json

import pytest

from mtlbench import report
from mtlbench.report.figures.sharing import TITLE, read_sharing, sharing_figures, sharing_json

TASKS = {"semseg": ("miou@1", True), "depth": ("rmse@1", False)}
SINGLE = {0: {"semseg": 0.4, "depth": 2.0}, 1: {"semseg": 0.6, "depth": 2.0}}
CURVE = {0.0: 1.0, 0.1: 1.5, 1.0: 4.0}
"""Depth error of the sub-task by threshold."""


def scores(values):
    return {task: {TASKS[task][0]: value} for task, value in values.items()}


def save(folder, run, values, cost, summary=None, seed=0):
    (folder / run).mkdir()
    record = {
        "format": 1,
        "run_id": run,
        "hash": run.rpartition("-")[2],
        "label": "",
        "method": "",
        "seed": seed,
        "tasks": list(values),
        "split": "test",
        "steps": 1,
        "scores": scores(values),
        "cost": {"train_seconds": 1.0, **cost},
    }
    (folder / run / "result.json").write_text(json.dumps(record))
    (folder / run / "summary.json").write_text(json.dumps(summary or {}))


def sharing(seed):
    points = [
        {"threshold": t, "scores": scores({"depth": v + seed}), "changed": {}, "flops": 2e6 - 1e6 * t}
        for t, v in CURVE.items()
    ]
    stored = {"kept": 10, "entries": 100, "index_bits": 32, "decoder": 5, "parameters": 16.0}
    return {"sharing": {"threshold": 0.1, "curves": {"scores": points}, "storage": stored}}


@pytest.fixture
def folder(tmp_path):
    rows = []
    for seed, values in SINGLE.items():
        for task, value in values.items():
            save(tmp_path, f"s-{task}-{seed}", {task: value}, {"flops": 3e6, "parameters": 100}, seed=seed)
        both = {task: f"s-{task}-{seed}" for task in TASKS}
        rows.append({"label": "single_task", "method": "single_task", "seed": seed, "serving": both})
        save(tmp_path, f"u-{seed}", {**values, "depth": 1.0}, {"parameters": 120}, seed=seed)
        rows.append(
            {"label": "<uniform>", "method": "uniform", "seed": seed, "serving": dict.fromkeys(TASKS, f"u-{seed}")}
        )
        save(tmp_path, f"c-{seed}", {"depth": CURVE[0.1] + seed}, {"flops": 9e9, "parameters": 999}, sharing(seed))
        serving = {"semseg": f"s-semseg-{seed}", "depth": f"c-{seed}"}
        rows.append({"label": "shared", "method": "computation_sharing", "seed": seed, "serving": serving})
    for row in rows:
        row["runs"] = list(dict.fromkeys(row["serving"].values()))
    tasks = {
        name: {
            "scale": 1.0,
            "in_delta_m": True,
            "kind": "depth",
            "protocols": [{"id": protocol, "higher_is_better": up, "unit": ""}],
        }
        for name, (protocol, up) in TASKS.items()
    }
    plan = {
        "format": 1, "suite": "toy", "version": 1, "title": "", "overrides": [], "baseline": "single_task",
        "selection": "last", "split": "test", "search": "none", "seeds": [0, 1], "tasks": tasks, "rows": rows,
        "package": "0", "created": "",
    }  # fmt: skip
    (tmp_path / "study.json").write_text(json.dumps(plan))
    return tmp_path


def test_points_by_hand(folder):
    points = read_sharing(*report.load(folder))
    shared = {point.threshold: point for point in points["shared"]}
    assert list(shared) == list(CURVE) and [point.own for point in points["shared"]] == [False, True, False]
    # Semseg is the base's own run: its gain is 0 on average. Depth, mean over seeds against 2.0, lower is better.
    for threshold, value in CURVE.items():
        assert shared[threshold].delta.mean == pytest.approx(50 * (2.0 - (value + 0.5)) / 2.0)
        assert shared[threshold].delta.n == 2
        # The base's own cost and the sub-task's at this threshold, not what the run itself took.
        assert shared[threshold].flops == pytest.approx(3e6 + 2e6 - 1e6 * threshold)
        assert shared[threshold].parameters == 116
    (single,), (uniform,) = points["single_task"], points["<uniform>"]
    assert single.delta.mean == pytest.approx(0) and (single.flops, single.parameters) == (6e6, 200)
    assert uniform.delta.mean == pytest.approx(25) and uniform.flops is None and uniform.parameters == 120


def test_the_own_point_is_the_leaderboards(folder):
    study, board = report.load(folder)
    points = read_sharing(study, board)
    for row in board.rows:
        (own,) = [point for point in points[row.label] if point.own]
        assert own.delta == row.delta


def test_figure(folder):
    figures = sharing_figures(read_sharing(*report.load(folder)))
    ((title, figure),) = figures.items()
    assert title == f"{TITLE} (no FLOPs on record: <uniform>)"
    (line,) = [t for t in figure.data if t.name == "shared" and t.xaxis == "x"]
    assert list(line.x) == pytest.approx([5.0, 4.9, 4.0]) and line.mode == "lines+markers"
    (stored,) = [t for t in figure.data if t.name == "shared" and t.xaxis == "x2"]
    assert list(stored.x) == pytest.approx([116e-6]) and list(stored.y) == pytest.approx([line.y[1]])
    assert "<uniform>" not in figure.to_json() and "counted, not measured" in figure.layout.xaxis.title.text
    assert sum(bool(t.showlegend) for t in figure.data) == 3


def test_page_and_file(folder):
    names = [path.name for path in report.write(folder)]
    assert "sharing.json" in names
    record = json.loads((folder / "sharing.json").read_text())
    assert [point["threshold"] for point in record["shared"]] == list(CURVE)
    assert record == json.loads(sharing_json(read_sharing(*report.load(folder))))
    assert TITLE in (folder / "report.html").read_text()


def test_nothing_where_nothing_is_shared(folder):
    plan = json.loads((folder / "study.json").read_text())
    plan["rows"] = [row for row in plan["rows"] if row["label"] != "shared"]
    (folder / "study.json").write_text(json.dumps(plan))
    assert read_sharing(*report.load(folder)) == {} and sharing_figures({}) == {}
    assert "sharing.json" not in [path.name for path in report.write(folder)]


def test_an_unfinished_row_is_left_to_the_list_of_problems(folder):
    (folder / "c-1" / "result.json").unlink()
    study, board = report.load(folder)
    assert read_sharing(study, board) == {} and [p.run for p in board.problems] == ["c-1"]
