"""What a report says about groups of tasks, and about plans of several stages, from records written by hand."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from mtlbench.cli import status
from mtlbench.report import build, show, write
from mtlbench.report.figures.affinity import affinity_figures
from mtlbench.report.groups import Grouping
from mtlbench.report.model import Leaderboard
from mtlbench.report.statistics import spearman
from mtlbench.report.tables import stages
from mtlbench.report.views.grouping import networks
from tests.support.fake_study import plan, result

TASKS = ["semseg", "depth", "saliency"]
ALONE = {"semseg": 0.4, "depth": 0.5, "saliency": 0.8}
TOGETHER = {
    ("semseg", "depth"): {"semseg": 0.44, "depth": 0.45},  # +10 %, +10 %: 10
    ("semseg", "saliency"): {"semseg": 0.42, "saliency": 0.8},  # +5 %, 0: 2.5
    ("depth", "saliency"): {"depth": 0.6, "saliency": 0.72},  # -20 %, -10 %: -15
    ("semseg", "depth", "saliency"): {"semseg": 0.4, "depth": 0.5, "saliency": 0.84},  # 5 / 3
}
MEASURED = dict(zip(TOGETHER, [10.0, 2.5, -15.0, 5 / 3], strict=True))
AFFINITY = [[9.0, 0.1, 0.2], [-0.3, 9.0, 0.4], [0.5, float("nan"), 9.0]]


class Fake:
    """A study under construction: `train` adds a run, `row` a row; times of runs are whole seconds."""

    def __init__(self, seeds: list[int], tasks: list[str] = TASKS) -> None:
        self.study = {**plan([], tasks, seeds), "rows": []}
        self.results: dict[str, Any] = {}
        for seed in seeds:
            runs = [self.train("single_task", seed, {t: ALONE[t]}, 10) for t in tasks]
            self.row("single_task", seed, [runs], dict(zip(tasks, runs, strict=True)))

    def train(self, method: str, seed: int, scores: dict[str, float], seconds: float) -> str:
        run = f"{method}-s{seed}-{'+'.join(scores)}"
        protocols = {t: self.study["tasks"][t]["protocols"][0]["id"] for t in scores}
        entry = {"label": "whoever trained it first", "method": method, "seed": seed}
        self.results[run] = result(run, entry, {t: {protocols[t]: v} for t, v in scores.items()})
        self.results[run]["cost"]["train_seconds"] = seconds
        return run

    def row(self, label: str, seed: int, by_stage: list[list[str]], serving: dict[str, str], **more: Any) -> None:
        entry = {"label": label, "method": label, "seed": seed, "stages": by_stage, "runs": [*chain(*by_stage)]}
        self.study["rows"].append({**entry, "serving": serving, **more})

    def subsets(self, seed: int, together: dict[tuple[str, ...], dict[str, float]] = TOGETHER) -> dict[Any, str]:
        return {group: self.train("uniform", seed, scores, 20) for group, scores in together.items()}

    def tag(self, seed: int, predicted: dict[tuple[str, ...], float], label: str = "tag", **more: Any) -> None:
        """Semseg and depth together, saliency along with semseg in a network that serves saliency."""
        search = self.train("inter_task_affinity", seed, {t: 0.9 for t in TASKS}, 30)
        first = self.train("uniform", seed, TOGETHER["semseg", "depth"], 20)
        second = self.train("uniform", seed, TOGETHER["semseg", "saliency"], 20)
        record = {
            "kind": "grouping",
            "groups": [["semseg", "depth"], ["semseg", "saliency"]],
            "networks": 2,
            "note": "",
            "serves": {"semseg": 0, "depth": 0, "saliency": 1},
            "search_runs": [search],
            "predicted": [{"group": list(g), "values": dict.fromkeys(g, v)} for g, v in predicted.items()],
            **more,
        }
        serving = {"semseg": first, "depth": first, "saliency": second}
        self.row(label, seed, [[search], [first, second]], serving, record=record)

    def board(self, states: dict[str, str] | None = None) -> Leaderboard:
        return build(self.study, self.results, states)

    def found(self) -> Grouping:
        (grouping,) = self.board().groupings
        return grouping

    def write(self, folder: Path) -> Path:
        (folder / "study.json").write_text(json.dumps(self.study))
        for run, record in self.results.items():
            (folder / run).mkdir()
            (folder / run / "result.json").write_text(json.dumps(record))
        return folder


RIGHT = {g: m + 100 for g, m in MEASURED.items()}
"""Predictions on a scale of their own, in the right order."""


def test_spearman_is_scipy_s() -> None:
    generator = np.random.default_rng(0)
    for size in (3, 4, 7, 40):
        a, b = (generator.integers(0, 5, size).tolist() for _ in "ab")  # Ties, on purpose.
        expected = stats.spearmanr(a, b).statistic if len({*a}) > 1 < len({*b}) else None
        assert spearman(a, b) == pytest.approx(expected)
    assert spearman([1, 2, 3, 4], [1e-9, 5, 6, 1e9]) == pytest.approx(1)
    assert spearman([1, 1, 1], [1, 2, 3]) is None and spearman([1, 2], [1, 2]) is None


def test_groups_and_costs_by_seed() -> None:
    fake = Fake([0, 1])
    fake.tag(0, RIGHT)
    fake.tag(1, RIGHT)
    (first, second) = fake.found().found
    assert first.groups == (("semseg", "depth"), ("semseg", "saliency")) and (first.seed, second.seed) == (0, 1)
    assert networks(first) == "semseg + depth; (semseg) + saliency"
    assert (first.search_seconds, first.group_seconds, first.total_seconds) == (30, 40, 70)
    assert first.exhaustive_seconds is None and first.share is None, "two of seven subsets lack"
    row = next(r for r in fake.board().rows if r.label == "tag")
    assert row.cost and row.cost.values["train_seconds"] == first.total_seconds, "finding the groups counts"


def test_cost_relative_to_all_subsets_only_where_all_were_trained() -> None:
    fake = Fake([0, 1])
    fake.tag(0, RIGHT)
    fake.tag(1, RIGHT)
    every = [run for seed in (0, 1) for run in fake.subsets(seed).values()]
    fake.row("oracle", 0, [every], {})
    found = fake.found()
    # Three runs of one task, 10 s each, and four groups of 20 s.
    assert [f.exhaustive_seconds for f in found.found] == [110, 110]
    assert found.share and found.share.mean == pytest.approx(100 * 70 / 110) and found.share.n == 2
    del fake.results[every[3]]
    assert [f.exhaustive_seconds for f in fake.found().found] == [None, 110]
    fake.results[every[0]]["cost"] = {}
    assert fake.found().found[0].total_seconds is None, "an unknown time is no time of zero"


def test_quality_is_the_mean_gain_of_the_groups_tasks_with_their_directions() -> None:
    fake = Fake([0])
    fake.row("oracle", 0, [list(fake.subsets(0).values())], {})
    fake.tag(0, {**RIGHT, ("semseg",): -1e6, ("depth",): 1e6})
    (found,) = fake.found().found
    qualities = {q.group: (q.predicted, q.measured) for q in found.qualities}
    assert set(qualities) == set(TOGETHER), "alone, a task gains nothing by definition"
    for group, (predicted, measured) in qualities.items():
        assert predicted == pytest.approx(RIGHT[group]) and measured == pytest.approx(MEASURED[group])
    assert found.correlation == pytest.approx(1)


@pytest.mark.parametrize("shuffle", [(1, 0, 2, 3), (3, 2, 1, 0), (2, 2, 1, 0), (0, 0, 0, 1)])
def test_rank_correlation_against_scipy_averaged_over_seeds(shuffle: tuple[int, ...]) -> None:
    fake = Fake([0, 1])
    predicted = dict(zip(TOGETHER, map(float, shuffle), strict=True))
    for seed, table in enumerate((RIGHT, predicted)):
        fake.row("oracle", seed, [list(fake.subsets(seed).values())], {})
        fake.tag(seed, table)
    expected = stats.spearmanr(shuffle, list(MEASURED.values())).statistic
    correlation = fake.found().correlation
    assert correlation and correlation.n == 2 and correlation.mean == pytest.approx((1 + expected) / 2)
    half = stats.t.ppf(0.975, 1) * abs(1 - expected) / 2
    assert correlation.low == pytest.approx(correlation.mean - half)


def test_what_does_not_count_as_measurement() -> None:
    fake = Fake([0, 1])
    fake.row("oracle", 0, [list(fake.subsets(0).values())], {})
    values = {**RIGHT, ("semseg", "depth"): math.nan}
    fake.tag(0, values)
    fake.tag(1, RIGHT)  # Of seed 1 only its own two groups were trained.
    # The run that measured affinities, and another method on all tasks, are no trainings of the full group.
    fake.row("pcgrad", 0, [[fake.train("pcgrad", 0, dict.fromkeys(TASKS, 0.99), 5)]], {})
    zero, one = fake.found().found
    assert {q.group for q in zero.qualities} == set(TOGETHER) - {("semseg", "depth")}
    assert dict((q.group, q.measured) for q in zero.qualities)[tuple(TASKS)] == pytest.approx(5 / 3)
    assert len(one.qualities) == 2 and one.correlation is None
    fake.results.pop("single_task-s0-depth")
    assert {q.group for q in fake.found().found[0].qualities} == {("semseg", "saliency")}, "nothing to compare with"


def test_a_row_of_single_networks_is_compared_on_the_groups_of_others() -> None:
    fake = Fake([0])
    fake.row("oracle", 0, [list(fake.subsets(0).values())], {})
    fake.tag(0, RIGHT)
    serving = {t: f"single_task-s0-{t}" for t in TASKS}
    record = {
        **fake.study["rows"][-1]["record"],
        "groups": [[t] for t in TASKS],
        "search_runs": [],
        "serves": {t: i for i, t in enumerate(TASKS)},
    }
    fake.row("apart", 0, [list(serving.values())], serving, record=record)
    _, apart = fake.board().groupings
    assert networks(apart.found[0]) == "semseg; depth; saliency" and len(apart.found[0].qualities) == 4
    assert (apart.found[0].search_seconds, apart.found[0].total_seconds) == (0, 30)


def affine(seed: int, shift: float) -> dict[str, Any]:
    values = [[v + shift for v in row] for row in AFFINITY]
    return {"affinity": {"tasks": TASKS, "values": values, "what": "TAG inter-task affinity"}}


def test_affinities_are_averaged_over_seeds_and_drawn_once_for_rows_that_share_them() -> None:
    fake = Fake([0, 1])
    for seed in (0, 1):
        fake.tag(seed, {}, **affine(seed, seed / 5))
        fake.tag(seed, {}, "tag_3", **affine(seed, seed / 5))
    fake.study["rows"][-1]["record"]["affinity"]["values"][2][1] = 0.7
    groupings = fake.board().groupings
    first, last = (g.affinity for g in groupings)
    assert first and last and first.seeds == 2
    expected: Any = [[9.1, 0.2, 0.3], [-0.2, 9.1, 0.5], [0.6, None, 9.1]]
    assert [pytest.approx(row) for row in expected] == [list(row) for row in first.values]
    assert last.values[2][1] == pytest.approx(0.7), "the seed that has it"
    ((title, figure),) = affinity_figures(groupings).items()
    assert title.startswith("TAG inter-task affinity") and len(figure.data) == 2
    assert list(figure.data[0].y) == list(figure.data[0].x) == TASKS and figure.data[0].z[1][0] == pytest.approx(-0.2)
    assert figure.layout.coloraxis.cmax == pytest.approx(0.7) == -figure.layout.coloraxis.cmin, "not the diagonal's 9.1"
    (shared,) = affinity_figures(groupings[:1] * 2).values()
    assert len(shared.data) == 1 and "tag, tag" in shared.layout.annotations[0].text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fake = Fake([0, 1])
    for seed in (0, 1):
        fake.row("oracle", seed, [list(fake.subsets(seed).values())], {})
        fake.tag(seed, RIGHT, "<tag>|[red]", **affine(seed, 0.0), note="what <b>it</b> says")
    return fake.write(tmp_path_factory.mktemp("groups"))


def test_every_view_tells_groups_costs_and_correlation(folder: Path) -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    show(folder, console=console)
    text = console.export_text()
    lines = [line.split() for line in text.splitlines() if "(semseg)" in line]
    assert len(lines) == 2
    words = "semseg + depth; (semseg) + saliency 30 s 40 s 70 s 63.6".replace("70 s", "1.2 min").split()
    assert lines[0][:2] == ["<tag>|[red]", "0"] and lines[0][2:] == words
    assert re.search(r"<tag>\|\[red\] +\+1\.00 ± 0\.00 +\[\+1\.00, \+1\.00\] +2 +4 +63\.6", text)
    assert "<tag>|[red]: what <b>it</b> says" in text
    written = {path.name: path.read_text() for path in write(folder)}
    assert "## Groups of tasks" in written["leaderboard.md"]
    assert "| &lt;tag>\\|\\[red] | 0 | semseg + depth; (semseg) + saliency | 30 s |" in written["leaderboard.md"]
    page = written["report.html"]
    assert "<b>it" not in page and "<tag>" not in page and "TAG inter-task affinity: recipients (rows)" in page
    assert page.count("(semseg) + saliency") == 2
    record = json.loads(written["grouping.json"])["<tag>|[red]"]
    assert record["affinity"]["values"][1][0] == -0.3 and record["affinity"]["values"][2][1] is None
    assert record["found"][1]["serves"] == {"semseg": 0, "depth": 0, "saliency": 1}
    assert record["found"][1]["total_seconds"] == 70 and record["correlation"]["mean"] == pytest.approx(1)
    csv_lines = list(csv.DictReader(io.StringIO(written["leaderboard.csv"])))
    (line,) = [x for x in csv_lines if x["quantity"] == "rank_correlation_of_groups"]
    assert float(line["mean"]) == pytest.approx(1) and line["n"] == "2"


def test_nothing_is_said_where_no_plan_looked_for_groups(tmp_path: Path) -> None:
    fake = Fake([0])
    fake.row("mine", 0, [["a"], ["b"]], {}, record={"kind": "curriculum"})
    folder = fake.write(tmp_path)
    assert "grouping.json" not in [path.name for path in write(folder)]
    assert "Groups of tasks" not in (folder / "leaderboard.md").read_text() + (folder / "report.html").read_text()


# Stages


def entry(label: str, by_stage: list[list[str]], serving: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    runs = [*chain(*by_stage)]
    return {
        "label": label,
        "method": label,
        "seed": 0,
        "stages": by_stage,
        "runs": runs,
        "serving": serving or {},
    } | more


ENTRIES = {
    "plain": entry("plain", [["plain-s0-1"]]),
    "ended": entry("ended", [["ended-s0-1"]], {"semseg": "ended-s0-1"}),
    "apart": entry("apart", [["uniform-s0-1", "uniform-s0-2"]], {"semseg": "uniform-s0-1"}),
    "several": entry("several", [["probe-s0-1"], ["uniform-s0-1", "uniform-s0-2"]], {"semseg": "uniform-s0-1"}),
    "first": entry("first", [["probe-s0-2"]]),
    "second": entry("second", [["probe-s0-1"], ["uniform-s0-3", "uniform-s0-4"]]),
    "lost": entry("lost", [["probe-s0-3", "uniform-s0-1"]]),
    "wrong": entry("wrong", [["wrong-s0-1"]], error="KeyError in the plan: 'depth'"),
}
STATES = {"probe-s0-1": "done", "probe-s0-2": "running", "probe-s0-3": "failed", "uniform-s0-1": "done",
          "uniform-s0-2": "done", "uniform-s0-3": "done", "uniform-s0-4": "todo", "ended-s0-1": "done",
          "plain-s0-1": "todo", "wrong-s0-1": "done"}  # fmt: skip


def lines_of(label: str) -> Iterator[str]:
    found = ENTRIES[label]
    if stages.shown(found):
        yield from (stages.counted(runs, STATES) for runs in stages.stages_of(found))
        yield from filter(None, [stages.ahead(found, STATES)])


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("plain", []),
        ("ended", []),
        ("apart", []),
        ("several", ["1 done", "2 done"]),
        ("first", ["1 running", "known when stage 1 is done"]),
        ("second", ["1 done", "1 done, 1 to do", "known when stage 2 is done"]),
        ("lost", ["1 done, 1 failed", "failed: the next stage depends on probe-s0-3, which failed"]),
        ("wrong", ["1 done", "failed: KeyError in the plan: 'depth'"]),
    ],
)
def test_stages_of_a_plan(label: str, lines: list[str]) -> None:
    assert list(lines_of(label)) == lines


def test_status_shows_stages_and_what_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    monkeypatch.setenv("COLUMNS", "160")
    (root / "study.json").write_text(json.dumps({**plan([], TASKS, [0]), "suite": "mine", "rows": [*ENTRIES.values()]}))
    monkeypatch.setattr(status, "states_of", lambda root, record: STATES)
    assert status.run(argparse.Namespace(results=tmp_path, suite="mine", verify=False)) == 1
    text = capsys.readouterr().out
    table = text[text.index("Plans by stage") :].splitlines()
    assert [line.split() for line in table if "second" in line] == [
        ["second", "0", "1", "1", "done"],
        ["second", "0", "2", "1", "done,", "1", "to", "do"],
        ["second", "0", "3", "known", "when", "stage", "2", "is", "done"],
    ]
    assert "failed: the next stage depends on probe-s0-3, which failed" in text and not [
        x for x in table if "plain" in x
    ]


def test_problems_say_what_a_failed_stage_takes_with_it_and_no_more() -> None:
    study = {**plan([], TASKS, [0]), "rows": [*ENTRIES.values()]}
    board = build(study, {}, STATES, {"probe-s0-3": {"type": "DivergedError", "message": "NaN"}})
    reasons = {(p.label, p.state): p.reason for p in board.problems}
    assert (
        reasons["lost", "failed"]
        == "DivergedError: NaN (stage 1 of the plan of lost; runs that depend on it are not started)"
    )
    assert reasons["wrong", "failed"] == "its plan failed: KeyError in the plan: 'depth'"
    assert {p.label for p in board.problems if p.state == "failed"} == {"lost", "wrong"}
    assert board.counts == {"failed": 2, "unfinished": 3}


def test_a_record_without_stages_is_one_stage(tmp_path: Path) -> None:
    old = {key: value for key, value in ENTRIES["lost"].items() if key != "stages"}
    assert stages.stages_of(old) == [["probe-s0-3", "uniform-s0-1"]]
    fresh = {**old, "runs": []}
    assert stages.stages_of(fresh) == [] and not stages.shown(fresh) and stages.ahead(fresh, {}) == ""
