"""The table of methods by conditions, from records written by hand, and every view of it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from mtlbench.report import load, show, write
from mtlbench.report.figures import training
from mtlbench.report.model import NamedPair
from mtlbench.report.tables import conditions
from mtlbench.runs import shapes
from tests.support.fake_study import plan, result

TASKS = ["semseg", "depth", "normals"]
ABOUT = {"kind": "low_resource", "columns": ["1 %", "10 %"], "target": "depth", "text": "few labels of depth"}
DROP = {"kind": "unrelated_task", "columns": ["+ normals"], "base": "without", "ignored": "normals", "text": "added"}


def study_of(table: dict[str, Any], about: dict[str, Any], seeds: int = 3) -> Any:
    """Returns (study, results) where ``table[label][condition][seed]`` is one score per task, None for a failed run."""
    study = {**plan([], TASKS, list(range(seeds))), "scenario": about, "rows": []}
    results, errors = {}, {}
    for label, by_condition in table.items():
        for condition, by_seed in by_condition.items():
            for seed, values in enumerate(by_seed):
                name = f"{label}-{condition}-{seed}"
                entry = {"label": label, "method": label, "seed": seed, "condition": condition, "runs": [name]}
                tasks = TASKS[: len(values or ())]
                study["rows"].append({**entry, "serving": dict.fromkeys(tasks, name)})
                if values is None:
                    errors[name] = {"type": "DivergedError", "message": "NaN"}
                    continue
                scores = {t: {study["tasks"][t]["protocols"][0]["id"]: v} for t, v in zip(tasks, values, strict=True)}
                results[name] = result(name, entry, scores)
    return study, results, errors


def board_of(*arguments: Any, named: NamedPair | None = None, **more: Any) -> Any:
    study, results, errors = study_of(*arguments, **more)
    return conditions.build(study, results, None, errors, named)


def few(*depths: float) -> list[tuple[float, float]]:
    return [(0.4, depth) for depth in depths]


LOW = {
    "dense": {"1 %": few(0.9, 0.8, 1.0), "10 %": few(0.6, 0.62, 0.64)},
    "sparse": {"1 %": few(0.8, 0.75, 0.85), "10 %": [*few(0.6, 0.61), None]},
    "other": {"1 %": few(0.9, 0.9, 0.9), "10 %": few(0.6, 0.6, 0.6)},
}


def test_cells_are_the_targets_scores_and_differences_are_paired_by_seed() -> None:
    board = board_of(LOW, ABOUT)
    assert [row.label for row in board.rows] == ["dense", "sparse", "other"] and board.conditions == ("1 %", "10 %")
    assert board.rows[0].values["1 %"] == {0: 0.9, 1: 0.8, 2: 1.0} and board.rows[1].values["10 %"] == {0: 0.6, 1: 0.61}
    assert board.quantity == "depth depth_rmse@1 [m] ↓" and board.reference == "dense"
    found = {(condition, c.label): c for condition, c in board.comparisons}
    assert len(found) == 4
    difference = found["1 %", "sparse"].difference
    assert difference.estimate.mean == pytest.approx(-0.1)
    assert difference.p == pytest.approx(stats.ttest_rel([0.8, 0.75, 0.85], [0.9, 0.8, 1.0]).pvalue)
    assert found["10 %", "sparse"].difference.estimate.n == 2, "the seeds that both have"
    smallest = min(c.difference.p for c in found.values())
    assert min(c.p_holm for c in found.values()) == pytest.approx(min(1, 4 * smallest))


def test_the_reference_is_the_baseline_where_it_has_a_row() -> None:
    study, results, errors = study_of(LOW, ABOUT)
    found = [conditions.build({**study, "baseline": b}, results, None, errors).reference for b in ("other", "absent")]
    assert found == ["other", "dense"]


def test_the_named_comparison_is_corrected_over_conditions_alone() -> None:
    board = board_of(LOW, ABOUT, named=NamedPair("sparse", "other", True, "", seeds=(0, 1, 2)))
    assert board.reference == "other"
    named = [c for _, c in board.comparisons if c.named]
    assert [c.label for c in named] == ["sparse", "sparse"] and len(board.comparisons) == 4
    assert min(c.p_holm for c in named) == pytest.approx(min(1, 2 * min(c.difference.p for c in named)))
    assert any("sparse against other" in note for note in board.notes)


def test_looks_and_seeds_set_apart_count_where_conditions_vary_too() -> None:
    def best(named: NamedPair) -> Any:
        return min((c for _, c in board_of(LOW, ABOUT, named=named).comparisons if c.named), key=lambda c: c.p_holm)

    apart = best(NamedPair("sparse", "other", True, "", seeds=(0, 1, 2)))
    looked = best(NamedPair("sparse", "other", True, "", looks=1))
    assert looked.p_holm == pytest.approx(min(1, 2 * apart.p_holm))
    assert best(NamedPair("sparse", "other", True, "", seeds=(0, 1))).difference.estimate.n == 2
    late = board_of(LOW, ABOUT, named=NamedPair("sparse", "other", False, "late"))
    assert not any(c.named for _, c in late.comparisons) and ("Named comparison", "late") in late.rules


def test_the_drop_of_the_others() -> None:
    # Means without: semseg 0.5, depth 0.5. Seed 0: semseg −0.1 (20 %), depth +0.05 (10 %): 15 %. Seed 1: 0 and −0.1.
    table = {
        "dense": {"without": [(0.4, 0.4), (0.6, 0.6)], "+ normals": [(0.3, 0.45, 9), (0.6, 0.5, 9)]},
        "sparse": {"without": [(0.5, 0.5), (0.5, 0.5)], "+ normals": [(0.5, 0.5, 9), (0.5, 0.5, 9)]},
        "zero": {"without": [(0.0, 0.5), (0.0, 0.5)], "+ normals": [(0.1, 0.5, 9), (0.1, 0.5, 9)]},
    }
    board = board_of(table, DROP, seeds=2)
    assert board.rows[0].values == {"+ normals": pytest.approx({0: 15.0, 1: -10.0})}
    assert board.rows[1].values == {"+ normals": {0: 0.0, 1: 0.0}}
    assert board.rows[2].values == {"+ normals": {}}, "nothing is relative to zero"
    ((condition, sparse),) = board.comparisons
    assert (condition, sparse.label) == ("+ normals", "sparse")
    assert sparse.difference.estimate.mean == pytest.approx(-2.5)


def test_the_difference_of_both_drops_is_paired_by_seed() -> None:
    about = {**DROP, "columns": ["+ a", "+ b"], "ignored": ["normals"], "difference": "b − a"}
    # Means without: 0.5 and 0.5. Drops under a: 15, -10 (see above); under b: semseg −0.1 and depth 0: 10, 10.
    table = {
        "dense": {
            "without": [(0.4, 0.4), (0.6, 0.6)],
            "+ a": [(0.3, 0.45, 9), (0.6, 0.5, 9)],
            "+ b": [(0.3, 0.4, 9), (0.5, 0.6, 9)],
        },
        "sparse": {name: [(0.5, 0.5), (0.5, 0.5)] for name in ("without", "+ a", "+ b")},
    }
    board = board_of(table, about, seeds=2)
    assert board.conditions == ("+ a", "+ b", "b − a")
    assert board.rows[0].values["b − a"] == pytest.approx({0: 10.0 - 15.0, 1: 10.0 + 10.0})
    assert board.rows[1].values["b − a"] == {0: 0.0, 1: 0.0}
    assert {condition for condition, _ in board.comparisons} == {"+ a", "+ b"}, "it is no further test"
    assert any(note.startswith("b − a: the drop under '+ b' minus that under '+ a'") for note in board.notes)


def test_the_difference_of_both_scores_is_paired_by_seed() -> None:
    about = {**ABOUT, "difference": "second − first"}
    floor = {"1 %": few(2.0, 1.9), "10 %": few(2.0, 1.8)}
    board = board_of({"dense": {"1 %": few(0.6, 0.5), "10 %": few(0.9, 0.7)}, "floor": floor}, about, seeds=2)
    assert board.conditions == ("1 %", "10 %", "second − first") and not board.signed
    assert board.rows[0].values["second − first"] == pytest.approx({0: 0.3, 1: 0.2})
    assert board.rows[0].at_floor == frozenset(), "a difference is not compared with that of the floor"
    assert "second − first: the score under '10 %' minus that under '1 %', paired by seed." in board.notes
    (figure,) = training.conditions(board).values()
    assert list(figure.data[0].x) == ["1 %", "10 %"]


def test_a_table_without_single_task_says_what_it_cannot_show() -> None:
    said = "There is no row of single_task, so what depth gains from the other tasks cannot be seen"
    about = {**ABOUT, "alone": "single_task"}
    assert any(said in note for note in board_of(LOW, about).notes)
    assert not any(said in note for note in board_of({**LOW, "single_task": LOW["dense"]}, about).notes)
    assert not any(said in note for note in board_of(LOW, ABOUT).notes)


def test_the_second_runs_that_were_chosen_are_told() -> None:
    study, results, errors = study_of(LOW, ABOUT)
    gates = [{"steps": 9, "related": "semseg"}, {"steps": 9, "related": "normals", "draw": 1}]
    draws = [{"steps": 9, "related": None}, {"steps": 5, "related": None, "draw": 1}]
    for entry in study["rows"]:
        best = int(entry["condition"] == "1 %" and entry["seed"] == 0)
        tried = {"sparse": gates, "other": draws, "dense": gates[:1]}[entry["label"]]
        entry["record"] = {"kind": "unseen_task", "tried": tried, "best": best % len(tried)}
        assert shapes.ROW(entry) and not shapes.ROW({**entry, "record": {**entry["record"], "best": 2}})
    assert not shapes.ROW({**entry, "record": {"kind": "unseen_task", "tried": [{"steps": "9"}], "best": 0}})
    (note,) = [n for n in conditions.build(study, results, None, errors).notes if n.startswith("Second runs")]
    assert note.endswith(
        "seeds. sparse: gates of normals (1), gates of semseg (5); "
        "other: draw 1 of the head and 9 steps (5), draw 2 of the head and 5 steps (1)."
    )


def test_a_row_may_lack_the_tasks_that_no_cell_shows(tmp_path: Path) -> None:
    """As `single_task` does, which trains the task with few labels alone."""
    about = {**ABOUT, "target": "semseg", "alone": "single_task"}
    table = {
        "single_task": {"1 %": [(0.4,), (0.5,)], "10 %": [(0.6,), (0.6,)]},
        "dense": {name: [(0.5, 0.9), (0.5, 0.9)] for name in ("1 %", "10 %")},
    }
    study, results, _ = study_of(table, about, seeds=2)
    (tmp_path / "study.json").write_text(json.dumps({**study, "baseline": "dense"}))
    for name, record in results.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(record))
    texts = {path.name: path.read_text() for path in write(tmp_path)}
    lines = list(csv.DictReader(io.StringIO(texts["leaderboard.csv"])))
    found = {(x["condition"], x["quantity"]) for x in lines if x["label"] == "single_task" and x["condition"]}
    assert {("1 %", "semseg"), ("10 %", "semseg")} <= found and not any(q.startswith("depth") for _, q in found)
    row, *_ = [line for line in texts["leaderboard.md"].splitlines() if line.startswith("| single")]
    assert "0.450" in row and "0.600" in row
    assert [c.difference.estimate.mean for _, c in load(tmp_path)[1].comparisons] == pytest.approx([-0.05, 0.1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    study, results, errors = study_of({**LOW, "<lost>": {"1 %": [None] * 3, "10 %": [None] * 3}}, ABOUT)
    (tmp_path / "study.json").write_text(json.dumps(study))
    for kind, records in (("result", results), ("error", errors)):
        for name, record in records.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / f"{kind}.json").write_text(json.dumps(record))
    return tmp_path


def test_the_terminal_shows_intervals_missing_cells_and_failures(folder: Path) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    show(folder, console=console)
    text = console.export_text()
    low, high = stats.t.interval(0.95, 2, 0.9, 0.1 / 3**0.5)
    assert f"0.900 [{low:.3f}, {high:.3f}]" in text
    (line,) = [line for line in text.splitlines() if line.startswith("sparse") and "0.800" in line]
    assert "(n=2)" in line
    (lost,) = [line for line in text.splitlines() if line.startswith("<lost>")]
    assert lost.split()[1:] == ["–"] * 5
    assert "Without a result: 7 failed" in text and "DivergedError: NaN" in text and "few labels of depth" in text
    assert "Δm" not in text


def test_files(folder: Path) -> None:
    names = {path.name: path.read_text() for path in write(folder)}
    lines = list(csv.DictReader(io.StringIO(names["leaderboard.csv"])))
    cell, *by_seed = [x for x in lines if (x["label"], x["condition"], x["quantity"]) == ("dense", "10 %", "depth")]
    assert cell["seed"] == "" and [x["seed"] for x in by_seed] == [str(s) for s in range(len(by_seed))]
    assert float(cell["mean"]) == pytest.approx(sum(float(x["mean"]) for x in by_seed) / len(by_seed))
    assert float(cell["mean"]) == pytest.approx(0.62) and cell["n"] == "3" and cell["better"] == "lower"
    assert {x["quantity"] for x in lines} >= {"semseg", "depth", "seconds_per_step", "parameters"}
    assert "| method | 1 % | 10 % | s/step |" in names["leaderboard.md"] and "&lt;lost>" in names["leaderboard.md"]
    assert r"\begin{tabular}{lrrrr}" in names["leaderboard.tex"]
    page = names["report.html"]
    assert "Methods by conditions" in page and "<lost>" not in page.replace("&lt;lost&gt;", "")
    assert "Differences to dense, paired by seed: depth depth_rmse@1 [m] ↓" in page


def test_a_study_that_has_not_begun(folder: Path) -> None:
    record = json.loads((folder / "study.json").read_text())
    record["rows"] = [{**entry, "runs": [], "serving": {}} for entry in record["rows"]]
    (folder / "study.json").write_text(json.dumps(record))
    _, board = load(folder)
    assert all(not values for row in board.rows for values in row.values.values()) and not board.comparisons
    assert board.counts["unfinished"] == 12
    assert len(write(folder)) == 4


def test_the_use_of_experts_is_told_condition_by_condition(tmp_path: Path) -> None:
    study, results, _ = study_of({"sparse": {"without": [(0.4, 0.5)], "+ normals": [(0.4, 0.5, 9)]}}, DROP, seeds=1)
    (tmp_path / "study.json").write_text(json.dumps(study))
    for name, record in results.items():
        tasks = record["tasks"]
        tables = {key: [[0.25, 0.75]] * len(tasks) for key in ("probability", "load")}
        experts = {"tasks": tasks, "top_k": {"block1.mlp": 1}, "layers": {"block1.mlp": tables}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(record))
        (tmp_path / name / "summary.json").write_text(json.dumps({"experts": experts}))
    write(tmp_path)
    found = json.loads((tmp_path / "experts.json").read_text())
    assert {key: len(value["tasks"]) for key, value in found.items()} == {"sparse, without": 2, "sparse, + normals": 3}
