"""The report, from files written by hand: ranks, Δm, blanks, and every view of them."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console
from scipy import stats

from mtlbench.errors import StoreError
from mtlbench.report import build, load, show, write
from mtlbench.report.model import NamedPair
from mtlbench.report.views import files, tables
from tests.support.fake_study import plan, result, write_study

SEGDEPTH = ["semseg", "depth"]


def study_of(table, seeds=(0, 1), tasks=("semseg",)):
    """Returns (study, results) where ``table[label][seed]`` is one score per task, ``None`` for a missing run."""
    study = plan(list(table), list(tasks), list(seeds))
    results = {}
    for entry in study["rows"]:
        values = table[entry["label"]][seeds.index(entry["seed"])]
        for task, value in zip(tasks, values or [], strict=False):
            protocol = study["tasks"][task]["protocols"][0]["id"]
            run = entry["serving"][task]
            results.setdefault(run, result(run, entry, {}))["scores"][task] = {protocol: value}
    return study, results


def row_of(board, label):
    return next(row for row in board.rows if row.label == label)


def test_delta_m_per_seed_against_the_mean_of_single_task():
    # Reference: semseg 0.4, depth 0.6. Seed 0: (+10 % - 10 %) / 2 = 0; seed 1: (+5 % + 20 %) / 2 = 12.5.
    board = build(
        *study_of(
            {
                "single_task": [(0.38, 0.66), (0.42, 0.54)],
                "ours": [(0.44, 0.66), (0.42, 0.48)],
            },
            tasks=SEGDEPTH,
        )
    )
    ours = row_of(board, "ours")
    assert ours.deltas == pytest.approx({0: 0.0, 1: 12.5})
    assert ours.delta.mean == pytest.approx(6.25)
    assert ours.delta.std == pytest.approx(12.5 / 2**0.5)
    assert ours.delta.n == 2
    assert row_of(board, "single_task").delta.mean == pytest.approx(0, abs=1e-9)
    # The gain per task is paired by seed: semseg 15 % and 0 % of 0.4.
    assert ours.gains["semseg"].estimate.mean == pytest.approx(7.5)
    assert ours.gains["depth"].estimate.mean == pytest.approx(5.0)


def test_ties_within_noise_share_a_rank_and_clear_differences_do_not():
    board = build(
        *study_of(
            {
                "single_task": [(0.40,), (0.40,), (0.40,)],
                "tied": [(0.50,), (0.52,), (0.48,)],
                "best": [(0.51,), (0.50,), (0.50,)],
            },
            seeds=(0, 1, 2),
        )
    )
    assert [(row.label, row.rank) for row in board.rows] == [("best", 1), ("tied", 1), ("single_task", 3)]
    compared = {(c.label, c.reference): c for c in board.comparisons}
    assert set(compared) == {("tied", "best"), ("single_task", "best")}
    assert compared["single_task", "best"].p_holm == pytest.approx(2 * compared["single_task", "best"].difference.p)


def test_a_pre_registered_comparison_pays_for_looks_alone():
    study, results = study_of({
        "single_task": [(0.40,), (0.41,), (0.39,)], "uniform": [(0.42,), (0.43,), (0.42,)],
        "other": [(0.43,), (0.42,), (0.41,)],
    }, seeds=(0, 1, 2))  # fmt: skip
    pair = NamedPair("single_task", "uniform", True, "in time", seeds=(0, 1, 2))
    board = build(study, results, named=pair)
    first, *rest = board.comparisons
    assert (first.label, first.reference, first.named) == ("single_task", "uniform", True)
    assert first.p_holm == first.difference.p and not any(c.named for c in rest)
    again = next(c for c in rest if (c.label, c.reference) == ("single_task", "uniform"))
    assert again.p_holm > first.p_holm, "among the others it is corrected"
    assert any("Pre-registered comparison: single_task against uniform" in note for note in board.notes)
    for looks in (1, 2):
        looked, *_ = build(study, results, named=replace(pair, seeds=(), looks=looks)).comparisons
        assert looked.p_holm == pytest.approx(min(1, first.difference.p * 2**looks))
    # A study without one of the two shows the others; a pair that was named late is one of them.
    assert not any(c.named for c in build(study, results, named=replace(pair, label="absent")).comparisons)
    late = build(study, results, named=replace(pair, confirmatory=False, about="late"))
    assert not any(c.named for c in late.comparisons) and ("Named comparison", "late") in late.rules


def test_intervals_refer_to_the_baseline_or_to_a_row_by_choice():
    table = {
        "single_task": [(0.40,), (0.42,), (0.38,)], "uniform": [(0.42,), (0.43,), (0.42,)],
        "ours": [(0.44,), (0.46,), (0.43,)],
    }  # fmt: skip
    study, results = study_of(table, seeds=(0, 1, 2))
    for reference in ("single_task", "uniform"):
        board = build(study, results, against=reference if reference == "uniform" else "")
        points = [
            100 * (ours[0] - other[0]) / 0.40 for ours, other in zip(table["ours"], table[reference], strict=True)
        ]
        known = stats.ttest_1samp(points, 0).confidence_interval(0.95)
        margin = row_of(board, "ours").margin.estimate
        assert (margin.low, margin.high) == pytest.approx((known.low, known.high))
        assert row_of(board, reference).margin is None
        heads = [part.head for part in tables.main(board)]
        assert ("95 % interval, minus uniform" in heads) == (reference == "uniform")
    with pytest.raises(StoreError, match="Did you mean 'uniform'"):
        build(study, results, against="unifrom")


def test_the_smallest_detectable_difference_is_printed():
    table = {
        "single_task": [(0.40,)] * 3, "uniform": [(0.40,), (0.42,), (0.38,)], "ours": [(0.44,), (0.42,), (0.43,)],
    }  # fmt: skip
    board = build(*study_of(table, seeds=(0, 1, 2)))
    # Paired differences to uniform in points: ours 10, 0, 12.5 (std 6.614), single_task 0, -5, 5 (std 5).
    assert board.resolution.std == pytest.approx(((6.6144**2 + 25) / 2) ** 0.5, rel=1e-4)
    assert board.resolution.detectable == pytest.approx(3.2637 * board.resolution.std, rel=1e-3)
    assert any("With 3 seeds, differences in Δm from uniform of less than 19.1 points" in note for note in board.notes)
    assert any(
        "Two seeds hardly measure noise" in n for n in build(*study_of({k: v[:2] for k, v in table.items()})).notes
    )


def test_ranks_are_corrected_over_the_rows_below():
    # Alone, the difference is significant; beside four noisy rows it is not.
    pair = {"single_task": [(0.40,)] * 4, "best": [(0.46,), (0.46,), (0.47,), (0.45,)]}
    near = [(0.450,), (0.455,), (0.450,), (0.442,)]
    alone = build(*study_of({**pair, "near": near}, seeds=(0, 1, 2, 3)))
    p = next(c for c in alone.comparisons if c.label == "near").difference.p
    assert 0.025 < p < 0.05 and row_of(alone, "near").rank == 2
    noisy = {f"noisy{i}": [(0.40,), (0.47,), (0.38,), (0.46 - i / 100,)] for i in range(4)}
    many = build(*study_of({**pair, "near": near, **noisy}, seeds=(0, 1, 2, 3)))
    assert row_of(many, "near").rank == 1


def test_small_steps_do_not_chain_into_one_rank():
    # Each neighbour of `middle` is within its noise; `top` and `bottom` have none and differ.
    noise = (0.010, -0.010, 0.010, -0.010)
    board = build(
        *study_of(
            {
                "single_task": [(0.40,)] * 4,
                "top": [(0.460,)] * 4,
                "middle": [(0.455 + n,) for n in noise],
                "bottom": [(0.450,)] * 4,
            },
            seeds=(0, 1, 2, 3),
        )
    )
    ranks = [(row.label, row.rank) for row in board.rows]
    assert ranks == [("top", 1), ("middle", 1), ("bottom", 3), ("single_task", 4)]


def test_one_seed_ranks_by_value_and_says_so():
    board = build(*study_of({"single_task": [(0.4,)], "uniform": [(0.41,)], "b": [(0.42,)]}, seeds=(0,)))
    assert [(row.label, row.rank) for row in board.rows] == [("b", 1), ("uniform", 2), ("single_task", 3)]
    entering = [f"{c.task} ({c.protocol})" for c in board.columns if c.in_delta_m]
    assert entering and dict(board.rules)["Δm"].endswith("from " + ", ".join(entering))
    assert any(note.startswith("With one seed") for note in board.notes)
    assert all(c.p_holm is None for c in board.comparisons)
    pairs = [(c.label, c.reference) for c in board.comparisons]
    assert pairs == [("uniform", "b"), ("single_task", "b"), ("single_task", "uniform")], "each pair once"


@pytest.mark.parametrize("gap", [None, (0.5,), (0.5, float("nan"))])
def test_a_missing_cell_means_no_rank_and_no_average(gap):
    board = build(
        *study_of(
            {
                "single_task": [(0.4, 0.6)] * 2,
                "gappy": [(0.9, 0.1), gap],
                "whole": [(0.41, 0.6)] * 2,
            },
            tasks=SEGDEPTH,
        )
    )
    gappy = row_of(board, "gappy")
    assert (gappy.rank, gappy.delta, gappy.seeds) == (None, None, (0,))
    assert gappy.hint == "missing cells in seed 1"
    assert gappy.cells["depth", "depth_rmse@1"].n == 1
    assert board.rows[-1] is gappy
    table = files.markdown(board)
    assert "**0.900**" not in table and "0.100 (n=1)" in table and "1/2" in table


def test_delta_m_is_blank_with_a_hint_without_single_task():
    study, results = study_of({"uniform": [(0.4,), (0.5,)]})
    board = build(study, results)
    assert row_of(board, "uniform").delta is None
    assert "add single_task" in row_of(board, "uniform").hint
    assert any("add single_task" in note for note in board.notes)
    study, results = study_of({"single_task": [(0.4,), None], "uniform": [(0.4,), (0.5,)]})
    assert row_of(build(study, results), "uniform").hint == "Δm needs single-task runs of seed 1"


def test_tasks_outside_delta_m_are_shown_but_not_averaged():
    tasks = ["semseg", "edges"]
    board = build(*study_of({"single_task": [(0.4, 0.1)] * 2, "a": [(0.44, 0.9)] * 2}, tasks=tasks))
    assert row_of(board, "a").delta.mean == pytest.approx(10.0)
    assert row_of(board, "a").cells["edges", "edge_loss@1"].mean == 0.9


def test_columns_never_mix_protocols_or_splits():
    study, results = study_of({"single_task": [(0.4,)] * 2, "a": [(0.4,)] * 2})
    results["a-s0-0a1b"]["scores"] = {"semseg": {"semseg_miou@2": 0.9}}
    with pytest.raises(StoreError, match="semseg_miou@2"):
        build(study, results)
    results["a-s0-0a1b"] |= {"split": "test"}
    with pytest.raises(StoreError, match="one split"):
        build(study, results)


def test_only_done_runs_count_and_the_others_are_listed_with_a_reason():
    study, results = study_of({"single_task": [(0.4,)] * 2, "a": [(0.4,)] * 2, "b": [(0.4,), None]})
    states = {"a-s0-0a1b": "stale", "b-s1-0a1b": "failed"}
    board = build(study, results, states, {"b-s1-0a1b": {"type": "DivergedError", "message": "NaN"}})
    assert [(p.label, p.seed, p.state) for p in board.problems] == [("a", 0, "stale"), ("b", 1, "failed")]
    assert board.problems[1].reason == "DivergedError: NaN"
    assert board.counts == {"failed": 1, "unfinished": 1}
    assert row_of(board, "a").rank is None


def test_cost_of_several_runs_is_summed_and_memory_is_the_largest():
    study, results = study_of({"single_task": [(0.4, 0.6)] * 2}, tasks=SEGDEPTH)
    for run in (r for r in results if r.endswith("depth")):
        results[run]["cost"] |= {"peak_memory_gib": 2.0, "seconds_per_step": 0.3}
    cost = build(study, results).rows[0].cost
    assert (cost.runs, cost.values["peak_memory_gib"], cost.values["parameters"]) == (2, 2.0, 2 * 1_234_567)
    assert cost.values["seconds_per_step"] == pytest.approx(0.4)
    assert cost.values["train_seconds"] == pytest.approx(70.0)


def test_unknown_serving_and_cost_are_blanks_not_errors():
    study, results = study_of({"single_task": [(0.4,)] * 2, "a": [(0.4,)] * 2})
    study["rows"][-1]["serving"] = {}
    for record in results.values():
        record["cost"] = {}
    board = build(study, results)
    assert "has not yet decided" in board.problems[0].reason
    assert row_of(board, "single_task").cost.values["seconds_per_step"] is None
    assert files.markdown(board)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("results") / "scenes")
    write(folder)
    return folder


def test_every_view_is_written(folder):
    lines = list(csv.DictReader(io.StringIO((folder / "leaderboard.csv").read_text())))
    famo = next(x for x in lines if (x["label"], x["quantity"]) == ("famo", "delta_m"))
    assert famo["protocol"] == "delta_m@1" and famo["n"] == "3" and float(famo["low"]) < float(famo["mean"])
    tex = (folder / "leaderboard.tex").read_text()
    assert r"\toprule" in tex and r"mod\_squad\_pcgrad" in tex and r"$\uparrow$" in tex and "±" not in tex
    assert (folder / "leaderboard.md").read_text().startswith("# scenes")


@pytest.mark.parametrize("width", [80, 100, 140, 200])
def test_the_terminal_table_fits_and_cuts_nothing(folder, width):
    stream = io.StringIO()
    show(folder, console=Console(file=stream, width=width))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for word in ("mod_squad_pcgrad", "Δm % ↑", "count ↑", "train", "1/3", "1 failed, 1 unfinished", "abc1234"):
        assert word in text
    assert "…" not in text


def test_the_page_shows_figures_and_examples(folder):
    page = (folder / "report.html").read_text()
    titles = (
        "Gain over single_task",
        "Δm against cost",
        "Training loss",
        "Gradient conflicts and update direction",
        "mean over training",
    )
    for title in (
        *titles,
        "Weight of each task&#39;s gradient in the update",
        "Gradient cosine between tasks, over training",
    ):
        assert title in page
    assert len(re.findall("data:image/(?:png|webp);base64,", page)) > 3 * 5 * 7
    assert page.count('<figure class="plot">') >= 8
    # Offline: nothing is loaded from elsewhere, and the policy of the page would not let it.
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']https?:", page)


class _Elements(HTMLParser):
    """Counts elements and keeps handlers, as a browser would see them."""

    def __init__(self):
        super().__init__()
        self.tags, self.handlers = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_names_and_messages_are_inert_in_every_view(tmp_path):
    evil = "</script><script>alert('x')</script>\"><img src=x onerror=alert(1)>[red]|`&_$"
    folder = write_study(tmp_path / "s", ["single_task", "uniform"])
    text = (folder / "study.json").read_text()
    study = json.loads(text)
    for record in study["rows"]:
        record["label"] = record["label"].replace("uniform", evil)
    study |= {"title": evil, "suite": evil, "data": evil, "overrides": [evil]}
    study["tasks"] = {evil if name == "count" else name: about for name, about in study["tasks"].items()}
    study["tasks"]["semseg"]["class_names"] = [evil] * 6
    (folder / "study.json").write_text(json.dumps(study))
    (folder / study["rows"][-1]["runs"][0] / "result.json").unlink()
    (folder / study["rows"][-1]["runs"][0] / "error.json").write_text(json.dumps({"type": evil, "message": evil}))
    write(folder)
    page = (folder / "report.html").read_text()
    seen = _Elements()
    seen.feed(page)
    assert not seen.handlers
    assert "<script>alert" not in page and "</script><script>" not in page
    assert seen.tags.count("script") == 2 + seen.tags.count("figure"), "the library, the page's own, one per figure"
    assert "<script" not in (folder / "leaderboard.md").read_text()
    stream = io.StringIO()
    show(folder, console=Console(file=stream, width=400))
    assert "[red]" in stream.getvalue()


def test_a_study_that_has_not_begun_is_a_report_too(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps(plan(["single_task", "uniform"], SEGDEPTH, [0])))
    names = [path.name for path in write(tmp_path)]
    assert names == ["leaderboard.md", "leaderboard.csv", "leaderboard.tex", "report.html"]
    _, board = load(tmp_path)
    assert board.counts == {"failed": 0, "unfinished": 3}
    assert not board.comparisons


def test_no_study_and_another_format_are_named(tmp_path):
    with pytest.raises(StoreError, match="Run the suite first"):
        load(tmp_path)
    (tmp_path / "study.json").write_text('{"format": 99}')
    with pytest.raises(StoreError, match="format 99"):
        load(tmp_path)


def test_the_report_starts_without_torch_and_the_table_without_plotly(tmp_path):
    folder = write_study(tmp_path / "s", ["single_task", "pcgrad"])
    code = (
        "import sys; from pathlib import Path; from mtlbench import report; "
        f"report.show(Path({str(folder)!r})); a = set(sys.modules); report.write(Path({str(folder)!r})); "
        "assert not a & {'plotly', 'jinja2', 'scipy.stats', 'PIL'}, a; "
        "assert not set(sys.modules) & {'torch', 'lightning', 'wandb', 'torchmetrics'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
