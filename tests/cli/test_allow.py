"""A stored run imports code of one's own only with permission; a bench needs none, because its suite names the code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtlbench.errors import ExitCode
from mtlbench.runs.store import read_json
from tests.support.command_line import Answer, mtlbench

OWN = """
from mtlbench.balancing import Balancer
from mtlbench.data_modules.scenes import Scenes

class Mine(Scenes):
    pass

class Halves(Balancer):
    def combine_losses(self, losses, ctx):
        return losses.sum() / 2
"""
SUITE = """
name: small
version: 1
data: {module: "own_code:Mine", options: {size: 16, frames: 2, train: 4, val: 1, test: 2, cache: CACHE}}
tasks: {semseg: {}, depth: {}}
model:
  encoder: vit_tiny_patch16_224
  encoder_options: {patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2}
  image_size: [16, 16]
  decoder_channels: 8
trainer: {steps: 4, batch_size: 4, diagnose_every: 0}
floor: false
methods:
  - single_task
  - kd_mtl
  - {name: computation_sharing, threshold: 0.1, thresholds: [0.1], layers: {block1: 0.5}}
  - "own_code:Halves"
scenario: SCENARIO
seeds: [0]
"""
WARM = "{kind: unseen_task, task: depth, related: [semseg], examples: [4], steps: 2}"


def suite(folder: Path, scenario: str = "{}") -> str:
    text = SUITE.replace("CACHE", str(folder / "cache")).replace("SCENARIO", scenario)
    (folder / "small.yaml").write_text(text)
    return "small.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("own")
    (place / "own_code.py").write_text(OWN)
    answer = mtlbench(place, "bench", suite(place), "--jobs", "2")
    assert answer.code == 0, answer.text
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(place / "photograph.png")
    return place


def run_of(folder: Path, label: str) -> str:
    study = read_json(folder / "results/small/study.json") or {}
    return "results/small/" + next(row["runs"][-1] for row in study["rows"] if row["label"] == label)


def test_plans_that_read_networks_of_other_runs_finish_and_resume_without_permission(folder: Path) -> None:
    """`kd_mtl` reads the networks of single tasks; `computation_sharing` starts its sub-tasks from its base."""
    done = {path.parent.name for path in (folder / "results/small").glob("*/result.json")}
    for label in ("kd_mtl", "computation_sharing", "Halves"):
        (folder / run_of(folder, label) / "result.json").unlink()
        spec = read_json(folder / run_of(folder, label) / "spec.json") or {}
        assert spec["data"]["module"] == "own_code:Mine"
    answer = mtlbench(folder, "bench", "small.yaml", "--jobs", "2")
    assert answer.code == 0, answer.text
    assert {path.parent.name for path in (folder / "results/small").glob("*/result.json")} == done


def test_a_warm_start_needs_no_permission(folder: Path) -> None:
    answer = mtlbench(
        folder, "bench", suite(folder, WARM), "--methods", "Halves single_task", "--results", "warm", "--jobs", "2"
    )
    suite(folder)
    assert answer.code == 0, answer.text
    starts = [json.loads(path.read_text()).get("start") for path in folder.glob("warm/small/*/spec.json")]
    assert any(starts)


@pytest.mark.parametrize("command", ["extract", "predict", "video"])
def test_looking_at_a_stored_run_needs_permission(command: str, folder: Path) -> None:
    def ask(*more: str) -> Answer:
        if command == "video":
            return mtlbench(folder, "video", "small", "--threshold", "0.1", "--distance", "2", "--clips", "1", *more)
        images = ["photograph.png"] if command == "predict" else []
        return mtlbench(folder, command, run_of(folder, "Halves"), *images, *more)

    refused = ask()
    assert refused.code == ExitCode.REFUSED and "own_code:Mine" in refused.text and "--allow own_code" in refused.text
    assert ask("--allow", "another").code == ExitCode.REFUSED
    allowed = ask("--allow", "own_code")
    if command == "extract":  # It gets as far as the network, which has no experts.
        assert allowed.code == ExitCode.REFUSED and "expert" in allowed.text and "allow" not in allowed.text
    else:
        assert allowed.code == 0, allowed.text
