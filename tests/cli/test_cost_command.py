"""``mtlbench cost``: what it measures, where it keeps it, and what the report makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mtlbench.cli import cost
from mtlbench.runs.store import read_json
from mtlbench.study import costs
from mtlbench.testing import toy_spec
from tests.support.command_line import mtlbench, write_suite

SUITE = """\
name: mine
version: 1
data:
  module: data_modules.digits:Digits
  options: {train: 40, val: 12}
tasks: {left: {}, ink: {}}
model:
  encoder: vit_tiny_patch16_224
  encoder_options: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}
  image_size: [24, 32]
  decoder_channels: 8
trainer: {steps: 4, batch_size: 4, log_every: 1, examples: 0}
methods: [uniform, single_task, kd_mtl, {name: task_moe, label: experts, experts: 4, top_k: 1}]
"""
QUICK = ("--pairs", "2", "--steps", "1")
FLOPS = "trainer.budget.unit=flops"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_suite(tmp_path, "mine", SUITE)
    monkeypatch.setattr(cost, "_peak", lambda runs, threads: float(len(runs)))
    return tmp_path


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return (read_json(folder / "results" / "mine" / costs.FILE) or {})["rows"]


def test_every_row_is_measured_and_nothing_else_is_stored(mine: Path) -> None:
    answer = mtlbench(mine, "cost", "mine.yaml", *QUICK)
    assert answer.code == 0, answer.text
    assert [path.name for path in (mine / "results" / "mine").iterdir()] == [costs.FILE]
    rows = rows_of(mine)
    assert list(rows) == ["uniform", "single_task", "kd_mtl", "experts"]
    uniform, single, distilled, experts = rows.values()
    assert uniform["flops_ratio"] == 1 and uniform["runs"] == 1 and single["runs"] == 2
    assert single["parameters"] > 1.5 * uniform["parameters"] == 1.5 * distilled["parameters"]
    assert single["parameters_active"] == uniform["parameters_active"] < experts["parameters_active"]
    assert single["flops_alone"] == uniform["flops_alone"] and single["flops"] > 1.5 * uniform["flops"]
    # Teachers are trained for the row too, but only the student serves its tasks.
    assert distilled["runs"] == 1 and distilled["peak_memory_gib"] == 3
    assert distilled["seconds_ratio"] > distilled["ratio"] > 0
    assert distilled["flops_ratio"] > single["flops_ratio"] + 1 > 2.5
    assert all(row["low"] < row["ratio"] < row["high"] and row["pairs"] == 2 for row in rows.values())
    head, *lines = [line for line in answer.text.splitlines() if line and "measuring" not in line][:5]
    assert head.split()[:3] == ["method", "time", "×"] and [line.split()[0] for line in lines] == list(rows)


def test_a_row_is_measured_once_until_it_changes(mine: Path) -> None:
    def measured(*words: str) -> list[str]:
        answer = mtlbench(mine, "cost", "mine.yaml", "--methods", "uniform experts", *QUICK, *words)
        assert answer.code == 0, answer.text
        return [line.split(":")[0] for line in answer.text.splitlines() if line.endswith(": measuring")]

    assert measured() == ["uniform", "experts"] and measured() == []
    assert measured("--again") == ["uniform", "experts"]
    assert measured("trainer.steps=8", FLOPS) == []
    assert measured("trainer.batch_size=8") == ["uniform", "experts"]


def test_json_alone_is_on_the_output(mine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from mtlbench import cli

    words = ["cost", str(mine / "mine.yaml"), "--results", str(mine / "r"), "--methods", "uniform", "--json", *QUICK]
    assert cli.main(words) == 0
    found = json.loads(capfd.readouterr().out)
    assert set(found) == {"uniform"} and found["uniform"]["reference"] == "uniform"


def test_rows_whose_runs_depend_on_results_are_named(mine: Path) -> None:
    answer = mtlbench(mine, "cost", "mine.yaml", "--methods", "uniform hoa", *QUICK)
    assert answer.code == 0 and "Not measured: hoa: The runs of the row must be known beforehand" in answer.text
    assert list(rows_of(mine)) == ["uniform"]
    assert mtlbench(mine, "cost", "mine.yaml", "--methods", "hoa", *QUICK).code == 2


def test_another_row_may_be_the_reference(mine: Path) -> None:
    words = ("--methods", "experts", "trainer.budget.of=experts", *QUICK)
    assert mtlbench(mine, "cost", "mine.yaml", *words).code == 0
    assert rows_of(mine)["experts"]["flops_ratio"] == 1 and rows_of(mine)["experts"]["reference"] == "experts"


def test_the_leaderboard_shows_what_was_measured(mine: Path) -> None:
    """s/step of the runs at first, then the time in pairs; s/step again where the row is another one."""
    mine_runs = ("run", "mine.yaml", "--method", "uniform")
    assert mtlbench(mine, *mine_runs).code == 0
    first = mtlbench(mine, "report", "mine").text
    assert "s/step was measured in the study's own runs" in first and "time ×" not in first
    assert mtlbench(mine, "cost", "mine.yaml", "--methods", "uniform", *QUICK).code == 0
    then = mtlbench(mine, "report", "mine").text
    assert "time × was measured in interleaved pairs by `mtlbench cost`" in then
    assert mtlbench(mine, *mine_runs, "trainer.batch_size=8").code == 0
    assert "time ×" not in mtlbench(mine, "report", "mine").text


def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    assert 0.05 < cost._peak([toy_spec("uniform")], 1) < 20
