"""All grouping plans through the bench: they share their runs, and their records say what was found and used."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from mtlbench.runs.store import RunFolder, read_json
from tests.support.command_line import mtlbench, write_suite

DATA = """\
from pathlib import Path
from mtlbench.data_modules import digits

class Three(digits.HeldOutDigits):
    def train_dataloader(self):
        with open(Path(__file__).with_name("trainings"), "a") as file:
            file.write("+".join(self.tasks) + "\\n")
        return super().train_dataloader()
"""
SUITE = """\
name: mine
version: 1
data:
  module: three:Three
  options: {train: 40, val: 8, test: 8}
tasks: {sum: {}, ink: {}, segments: {}}
model:
  encoder: vit_tiny_patch16_224
  encoder_options: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}
  image_size: [24, 32]
  decoder_channels: 8
trainer: {steps: 4, batch_size: 4, log_every: 1, examples: 0, diagnose_every: 0, workers: 0}
floor: false
methods: [single_task, uniform, random_grouping, {name: tag, every: 2}, cosine_grouping, hoa, optimal_grouping,
  oracle_grouping]
"""
TASKS = ("sum", "ink", "segments")
SUBSETS = [group for size in (1, 2, 3) for group in combinations(TASKS, size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("grouping")
    (place / "three.py").write_text(DATA)
    write_suite(place, "mine", SUITE)
    answer = mtlbench(place, "bench", "mine.yaml")
    assert answer.code == 0, answer.text
    return place


def rows(folder: Path) -> dict[str, Any]:
    study = read_json(folder / "results" / "mine" / "study.json") or {}
    return {row["label"]: row for row in study["rows"]}


def test_every_run_is_trained_once(folder: Path) -> None:
    found = (folder / "trainings").read_text().split()
    probes = ["+".join(TASKS)] * 2
    assert sorted(found) == sorted(["+".join(group) for group in SUBSETS] + probes)


def test_again_nothing_is_trained(folder: Path) -> None:
    before = (folder / "trainings").read_text()
    answer = mtlbench(folder, "bench", "mine.yaml", "--retry", "trainer.log_every=2")
    assert answer.code == 0, answer.text
    assert (folder / "trainings").read_text() == before


def test_records_hold_together(folder: Path) -> None:
    root = folder / "results" / "mine"
    for label in ("random_grouping", "tag", "cosine_grouping", "hoa", "optimal_grouping", "oracle_grouping"):
        row = rows(folder)[label]
        record = row["record"]
        assert 1 <= len(record["groups"]) <= record["networks"] == 2
        for task, index in record["serves"].items():
            spec = RunFolder(root, row["serving"][task]).spec()
            assert spec and sorted(spec.tasks) == sorted(record["groups"][index]) and task in spec.tasks
        assert set(row["runs"]) == {*record["search_runs"], *row["serving"].values()}


def score(result: dict[str, Any], split: str, task: str) -> float:
    """Returns the first score of a task, more is better: errors of ``sum`` and ``ink``, mIoU of ``segments``."""
    value = next(iter(result[split][task].values()))
    return value if task == "segments" else -value


@pytest.mark.parametrize(("label", "split"), [("optimal_grouping", "validation"), ("oracle_grouping", "scores")])
def test_the_choice_is_the_best_of_all_pairs_on_its_split(folder: Path, label: str, split: str) -> None:
    root, row = folder / "results" / "mine", rows(folder)[label]
    results = {}
    for run in row["runs"]:
        spec, result = RunFolder(root, run).spec(), RunFolder(root, run).result()
        assert spec and result
        results[tuple(task for task in TASKS if task in spec.tasks)] = result
    assert sorted(results) == sorted(SUBSETS)

    def total(chosen: tuple[tuple[str, ...], ...]) -> float:
        gains = []
        for task in TASKS:
            alone = score(results[task,], split, task)
            best = max(score(results[group], split, task) for group in chosen if task in group)
            gains.append((best - alone) / abs(alone))
        return sum(gains)

    choices = [c for count in (1, 2) for c in combinations(SUBSETS, count) if {t for g in c for t in g} == {*TASKS}]
    chosen = tuple(tuple(group) for group in row["record"]["groups"])
    assert total(chosen) == pytest.approx(max(total(choice) for choice in choices))


def test_what_can_be_seen_before_anything_runs(folder: Path) -> None:
    for words, message in (
        (["methods=[{name: tag, networks: 0}]"], "at least 1. Found 0"),
        (["methods=[{name: hoa, train: unifrom}]"], "'unifrom'. Did you mean 'uniform'"),
        (["methods=[{name: tag, balancer: pcgrad}]"], "Write train: pcgrad"),
        (["methods=[{name: tag, every: 0}]"], "every"),
    ):
        answer = mtlbench(folder, "bench", "mine.yaml", "--dry", *words)
        assert answer.code == 2 and message in answer.text, answer.text
