"""Methods over several studies: mean ranks, the tests of Demšar (2006), and what the command prints."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mtlbench.cli import main
from mtlbench.errors import StoreError
from mtlbench.report import build
from mtlbench.report.tables.across import compare_studies, critical_difference
from tests.support.fake_study import plan, result, write_study

LABELS = ["single_task", "a", "b", "c"]


def study_of(values: dict[str, list[float]], suite: str = "scenes"):
    """Returns (study, results): one score per label and seed; single_task is 0.5."""
    seeds = list(range(len(next(iter(values.values())))))
    study = {**plan(["single_task", *values], ["semseg"], seeds), "suite": suite}
    results = {}
    for entry in study["rows"]:
        (run,) = entry["runs"]
        score = values.get(entry["label"], [0.5] * len(seeds))[entry["seed"]]
        results[run] = result(run, entry, {"semseg": {study["tasks"]["semseg"]["protocols"][0]["id"]: score}})
    return study, results


def boards_of(*tables: dict[str, list[float]]):
    return [build(*study_of(table)) for table in tables]


def test_critical_differences_are_those_of_the_paper():
    # Demšar (2006), table 5a, q at 0.05; with k (k + 1) / (6 N) = 1 the critical difference is q.
    known = {2: 1.960, 3: 2.343, 5: 2.728, 10: 3.164}
    for k, q in known.items():
        assert critical_difference(k, 6) == pytest.approx(q * np.sqrt(k * (k + 1) / 36), abs=2e-3)


def test_mean_ranks_and_the_friedman_test_agree_with_a_reference():
    rng = np.random.default_rng(0)
    tables = [{name: list(rng.normal(0.5 + 0.02 * i, 0.03, 3)) for i, name in enumerate("abcd")} for _ in range(6)]
    found = compare_studies(boards_of(*tables), [f"s{i}" for i in range(6)])
    means = np.array([[np.mean(t[name]) if name in t else 0.5 for name in ("single_task", *"abcd")] for t in tables])
    ranks = stats.rankdata(-means, axis=1)
    expected = dict(zip(("single_task", *"abcd"), ranks.mean(0), strict=True))
    assert {row.label: row.mean for row in found.rows} == pytest.approx(expected)
    assert all(row.low <= row.mean <= row.high for row in found.rows)
    chi2 = stats.friedmanchisquare(*means.T).statistic
    f = 5 * chi2 / (6 * 4 - chi2)
    assert found.friedman == pytest.approx(stats.f.sf(f, 4, 20))


def test_ties_share_ranks_and_methods_of_some_studies_are_left_out():
    first = {"a": [0.6, 0.6], "b": [0.6, 0.6], "c": [0.4, 0.4]}
    found = compare_studies(boards_of(first, {"a": [0.6, 0.6], "b": [0.55, 0.55]}), ["x", "y"])
    assert {row.label: row.ranks for row in found.rows} == {"a": (1.5, 1.0), "b": (1.5, 2.0), "single_task": (3.0, 3.0)}
    assert found.left_out == ("c",)
    assert found.tied == (("a", "b", "single_task"),), "two studies tell nothing apart"


def test_too_little_to_compare_is_said():
    boards = boards_of({"a": [0.6, 0.6]}, {"b": [0.6, 0.6]})
    with pytest.raises(StoreError, match="at least two studies"):
        compare_studies(boards[:1], ["x"])
    with pytest.raises(StoreError, match="Found in all: single_task"):
        compare_studies(boards, ["x", "y"])


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("one", "two"):
        write_study(tmp_path / name, ["single_task", "uniform", "famo"])
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert main(["compare", *folders, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "mean rank" in printed and "2 studies are too few to tell 3 methods apart" in " ".join(printed.split())
    lines = list(csv.reader((tmp_path / "out" / "comparison.csv").open()))
    assert lines[0][:4] == ["method", "mean_rank", "low", "high"] and len(lines) == 4
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "famo" in page and "critical difference" in page
    assert main(["compare", folders[0], "--out", str(tmp_path / "out")]) == 2
    assert main(["compare", folders[0], str(tmp_path / "absent")]) == 2
