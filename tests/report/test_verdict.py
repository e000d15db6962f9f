"""The verdict's sentences, each against a study that was constructed so that one answer is right."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from mtlbench.report import build
from mtlbench.report.model import NamedPair
from mtlbench.report.statistics import ALPHA
from mtlbench.report.verdict import verdict
from mtlbench.report.verdict.words import SHORT, compared, listed
from mtlbench.report.views import files
from mtlbench.report.views.terminal import show_board
from tests.report.test_conditions import DROP, few
from tests.report.test_conditions import board_of as conditions_of
from tests.report.test_report import SEGDEPTH, study_of
from tests.report.test_report_floor import SEEDS, TABLE

NOISE = (0.001, -0.001, 0.0)


def scores(*means: float, noise: tuple[float, ...] = NOISE) -> list[tuple[float, ...]]:
    return [tuple(m + n for m in means) for n in noise]


CLEAR = {"single_task": scores(0.40), "uniform": scores(0.42, noise=NOISE[::-1]), "ours": scores(0.48)}
TIED = {
    "single_task": [(0.40,), (0.40,), (0.40,)],
    "uniform": [(0.44,), (0.47,), (0.46,)],
    "ours": [(0.47,), (0.45,), (0.46,)],
}


def told(board: Any) -> dict[str, str]:
    statements = verdict(board)
    assert len({s.topic for s in statements}) == len(statements), "each topic once"
    assert all(s.text.endswith((".", ").")) for s in statements), "whole sentences"
    return {s.topic: s.text for s in statements}


def board_of(table: dict[str, Any], seeds: tuple[int, ...] = SEEDS, tasks: Any = ("semseg",), **more: Any) -> Any:
    return build(*study_of(table, seeds, tasks), **more)


def test_a_clear_winner_is_ahead_of_every_method_and_by_how_much() -> None:
    found = told(board_of(CLEAR))
    # (0.48 - 0.42) / 0.40 is 15 points.
    assert found["Best method"].startswith(
        "ours is ahead of every other method beyond noise, with a mean Δm of +20.00 %"
    )
    assert "The next, uniform, is 15.00 (95 % interval" in found["Best method"]
    assert found["Against single_task"].startswith("Ahead beyond noise: ours (+20.00, ")
    assert "uniform (+5.00, " in found["Against single_task"] and "Cannot" not in found["Against single_task"]
    assert "Behind: single_task (−5.00, " in found["Against uniform"]
    assert found["Best for semseg"].startswith("ours scores best (0.480), ahead of every other method beyond noise.")
    assert not {"At the floor", "Not ranked"} & found.keys()


def test_a_tie_names_nobody_as_the_winner_and_says_how_many_seeds_would_tell() -> None:
    board = board_of(TIED)
    found = told(board)
    assert found["Best method"].startswith(
        "ours has the highest mean Δm, +15.00 %, but uniform cannot be distinguished from it"
    )
    assert "Beyond noise, it is ahead of single_task, by 15.00 points." in found["Best method"]
    assert "Cannot be distinguished from it: ours." in found["Against uniform"]
    assert (
        f"With 3 seeds, a true difference in Δm from uniform of less than {board.resolution.detectable:.1f} points"
        in (found["What cannot be shown"])
    )
    assert "more than 100 seeds would tell them apart" in found["What cannot be shown"]
    assert "uniform cannot be distinguished from it" in found["Best for semseg"]


def test_without_any_difference_no_method_leads() -> None:
    table = {"single_task": scores(0.40), "uniform": scores(0.40, noise=NOISE[::-1])}
    found = told(board_of(table))
    assert found["Best method"].startswith("No method leads beyond noise.")
    assert "no other method can be distinguished from it" in found["Best for semseg"]


def test_sentences_and_tables_rest_on_the_same_tests() -> None:
    for table in (CLEAR, TIED):
        board = board_of(table)
        values = {row.label: row.deltas for row in board.rows}
        for reference in {c.reference for c in board.comparisons}:
            pairs = {pair.label: pair.p for pair in compared(values, reference)}
            shown = {c.label: c.p_holm for c in board.comparisons if c.reference == reference}
            assert shown.items() <= pairs.items()
        best = {row.label for row in board.rows if row.rank == 1}
        told_apart = {p.label for p in compared(values, board.rows[0].label) if p.p is not None and p.p < ALPHA}
        assert best == values.keys() - told_apart


def test_one_seed_supports_no_sentence_about_who_is_ahead() -> None:
    found = told(board_of({label: rows[:1] for label, rows in CLEAR.items()}, (0,)))
    assert "ours has the highest Δm" in found["Best method"]
    assert "no difference between methods can be distinguished from chance" in found["Best method"]
    assert not any("beyond noise" in text for text in found.values())
    assert found["Best for semseg"] == "ours scores best (0.481), by the value of one seed alone."
    assert "Against uniform" not in found


def test_a_baseline_at_the_floor_supports_no_claim_on_delta_m() -> None:
    found = told(board_of(TABLE, tasks=SEGDEPTH))
    first, *_ = found
    assert first == "No claim on Δm"
    assert "The baseline single_task is itself not better than the floor in depth" in found[first]
    assert not {"Best method", "Against uniform", "Cost"} & found.keys()
    assert (
        found["At the floor"]
        == "semseg: low is not better than the floor. depth: single_task is not better than the floor."
    )
    assert "low scores best" in found["Best for depth"], "low is better than the floor there"
    assert "Gain over" not in found["Best for depth"] and "Gain over" not in found["Best for semseg"]


def test_a_task_in_which_nobody_beats_the_floor_has_no_best_method() -> None:
    table = {
        "single_task": scores(0.40, 0.60), "uniform": scores(0.42, 0.60), "floor": [(0.20, 0.50)] * 3,
    }  # fmt: skip
    found = told(board_of(table, tasks=SEGDEPTH))
    assert found["At the floor"] == "depth: no method is better than the floor, so the scores show no learning."
    assert "Best for semseg" in found and "Best for depth" not in found
    two = told(board_of({label: rows[:2] for label, rows in table.items()}, SEEDS[:2], tasks=SEGDEPTH))
    assert "With two seeds, intervals are so wide" in two["At the floor"]


def test_missing_cells_and_failed_runs_are_named_with_their_reason() -> None:
    table = {**CLEAR, "gappy": [(0.9,), None, None], "broken": [None] * 3}
    study, results = study_of(table, SEEDS)
    errors = {
        "broken-s0-0a1b": {"type": "DivergedError", "message": "The loss became NaN.\nLower the rate." + "x" * 200}
    }
    found = told(build(study, results, None, errors))
    text = found["Not ranked"]
    assert "gappy: missing cells in seed 1, 2." in text
    assert "broken: missing cells in seed 0, 1, 2 (DivergedError: The loss became NaN. Lower the rate.xxx" in text
    assert "…" in text and len(text) < 350
    assert found["Best method"].startswith("ours is ahead of every other method"), "the others are still compared"
    assert not any("gappy" in text for topic, text in found.items() if topic != "Not ranked")


def test_nothing_is_told_before_two_rows_are_complete() -> None:
    assert told(board_of({"single_task": [None] * 3, "uniform": [None] * 3}))["Nothing to report yet"].startswith(
        "No method"
    )
    found = told(board_of({"single_task": CLEAR["single_task"], "uniform": [None] * 3}))
    assert found["Nothing to report yet"].startswith("Only single_task has Δm")
    # Without a baseline there is no Δm, but tasks can be compared.
    found = told(board_of({"uniform": CLEAR["uniform"], "ours": CLEAR["ours"]}))
    assert "Best for semseg" in found and "add single_task" in found["Not ranked"]
    assert found["Not ranked"].count("add single_task") == 1, "one reason for several rows is given once"


@pytest.mark.parametrize(
    ("tuned", "expected"),
    [
        ({}, "No method was tuned."),
        ({"ours": 8}, "ours was tuned, uniform and single_task were not. A lead of a tuned method"),
        ({"ours": 8, "uniform": 8, "single_task": 8}, "Every method was tuned with the same number of trials, 8."),
        ({"ours": 8, "uniform": 4, "single_task": 8}, "Methods were tuned with 4 to 8 trials each"),
    ],
)
def test_tuned_against_untuned(tuned: dict[str, int], expected: str) -> None:
    study, results = study_of(CLEAR, SEEDS)
    for entry in study["rows"]:
        trials = [{"number": n, "values": {}, "score": 1.0, "steps": 1} for n in range(tuned.get(entry["label"], 0))]
        if trials:
            entry["record"] = {"search": {"chosen": 0, "trials": trials}}
    assert told(build(study, results))["Tuning"].startswith(expected)


def test_the_cost_of_the_best_method_is_relative_to_uniform() -> None:
    study, results = study_of(CLEAR, SEEDS)
    for run, record in results.items():
        record["cost"]["seconds_per_step"] = 0.3 if run.startswith("ours") else 0.1
        record["cost"]["parameters"] = 190 if run.startswith("ours") else 100
    text = told(build(study, results))["Cost"]
    assert text.startswith("Relative to uniform, ours takes 1.90 × the parameters"), "times are not comparable"
    assert "the time of a step" not in text
    study["cost_keys"] = {"ours": "k"}
    entry = {"key": "k", "ratio": 2.5, "low": 2.4, "high": 2.6, "pairs": 9, "reference": "uniform", "created": ""}
    text = told(build(study, results, measured={"ours": entry}))["Cost"]
    assert "2.50 × the time of a step, measured in pairs" in text


def test_the_cheapest_of_the_methods_that_share_the_first_rank_is_named() -> None:
    study, results = study_of(TIED, SEEDS)
    for run, record in results.items():
        record["cost"]["training_flops"] = 3e12 if run.startswith("ours") else 1e12
    assert "uniform takes the fewest FLOPs to train: 1T against 3T." in told(build(study, results))["Cost"]


def test_whether_gradient_surgery_pays_is_said_in_one_sentence_with_its_cost() -> None:
    better, worse = scores(0.48), scores(0.36)
    table = {**CLEAR, "ours": scores(0.50), "pcgrad": better, "cagrad": scores(0.42), "famo": better}
    study, results = study_of(table, SEEDS)
    for run, record in results.items():
        record["cost"]["training_flops"] = 7e12 if run.startswith(("pcgrad", "cagrad")) else 2e12
    found = told(build(study, results))
    assert found["Gradient surgery"].startswith(
        "Of the rules that use every task's gradient (pcgrad and cagrad), pcgrad is ahead of uniform beyond noise; "
        "cagrad cannot be distinguished from it."
    ), "famo and ours are no rules on gradients"
    assert found["Gradient surgery"].endswith(" Training takes 3.50 × the FLOPs of uniform.")
    none = told(board_of({**CLEAR, "pcgrad": worse, "mgda": worse}))["Gradient surgery"]
    assert "none is ahead of uniform beyond noise; mgda and pcgrad are behind it." in none
    assert "Gradient surgery" not in told(board_of(CLEAR))


def test_a_pre_registered_comparison_has_its_own_sentence() -> None:
    pair = NamedPair("ours", "uniform", True, "in time", seeds=SEEDS)
    against = told(board_of(TIED, named=pair))["Against uniform"]
    assert "ours" not in against and "ours" in told(board_of(TIED))["Against uniform"]
    assert told(board_of(TIED))["Against uniform"].startswith("No method is ahead of it.")
    assert against.startswith("No other method is ahead of it."), "the pre-registered one may be"
    assert told(board_of(CLEAR, named=pair))["Pre-registered"].startswith(
        "ours differs beyond noise from uniform: +15.00"
    )
    assert told(board_of(TIED, named=pair))["Pre-registered"].startswith("ours cannot be distinguished from uniform")


def test_scores_under_conditions_are_compared_in_the_better_direction() -> None:
    # Depth: lower is better. `good` is better than `base` at 1 % alone, `bad` worse.
    table = {
        "base": {"1 %": few(0.80, 0.82, 0.81), "10 %": few(0.5, 0.6, 0.7)},
        "good": {"1 %": few(0.40, 0.42, 0.41), "10 %": few(0.6, 0.5, 0.7)},
        "bad": {"1 %": few(0.90, 0.92, 0.91), "10 %": [*few(0.7, 0.5), None]},
    }
    about = {"kind": "low_resource", "columns": ["1 %", "10 %"], "target": "depth", "text": "few labels of depth"}
    found = told(conditions_of(table, about))
    assert found["1 %, against base"].startswith("Better beyond noise: good (−0.400, ")
    assert "Worse: bad (+0.100, " in found["1 %, against base"]
    assert found["10 %, against base"] == "No method is better. Cannot be distinguished from it: good and bad."
    assert found["Missing"].startswith("Not every seed has a result: bad. Failed: DivergedError: NaN")
    assert "Undefined" not in found
    alone = told(conditions_of({"base": table["base"]}, about))
    assert alone == {"Conditions": "The study has one method, base: the tables compare its conditions."}
    one = told(conditions_of({k: {c: v[:1] for c, v in x.items()} for k, x in table.items()}, about, seeds=1))
    assert one["1 %, against base"].startswith("One seed gives no measure of noise")


def test_a_change_relative_to_nothing_is_undefined_and_not_missing() -> None:
    # The first task is scored 0 by `zero` without the change.
    table = {
        "base": {"without": few(0.8, 0.8, 0.8), "+ normals": few(0.8, 0.7, 0.9)},
        "zero": {"without": [(0.0, 0.8)] * 3, "+ normals": [(0.1, 0.8)] * 3},
    }
    about = {
        "kind": "unrelated_task",
        "columns": ["+ normals"],
        "base": "without",
        "ignored": "normals",
        "text": "added",
    }
    found = told(conditions_of(table, about))
    assert found["Undefined"] == "A change relative to a score of 0 has no value: zero." and "Missing" not in found


def test_a_smaller_drop_is_better() -> None:
    whole, low = [(0.50, 0.6, 20.0)] * 3, [(0.41, 0.6, 20.0), (0.40, 0.6, 20.0), (0.39, 0.6, 20.0)]
    table = {"base": {"without": whole, "+ normals": low}, "steady": {"without": whole, "+ normals": whole}}
    found = told(conditions_of(table, DROP))
    assert found["+ normals, against base"].startswith("Better beyond noise: steady (−10.00, ")


def test_long_lists_are_cut_and_counted() -> None:
    assert [listed("abcdefg"[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
    names = [str(number) for number in range(SHORT + 3)]
    assert listed(names[: SHORT + 1]) == f"{', '.join(names[:SHORT])} and {SHORT}", (
        "one more costs no more than a count"
    )
    assert listed(names) == f"{', '.join(names[:SHORT])} and 3 more"


def test_the_verdict_is_first_in_markdown_and_last_in_the_terminal() -> None:
    board = board_of(CLEAR)
    text = files.markdown(board)
    assert 0 < text.index("## Verdict") < text.index("ours is ahead of every other method") < text.index("| # |")
    stream = io.StringIO()
    show_board(board, Console(file=stream, width=100))
    after = stream.getvalue().partition("\nVerdict\n")[2]
    assert after.startswith("Best method") and "Costs" not in after
