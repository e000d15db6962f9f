"""The script for GPUs runs on a CPU in its small form; no step of a rule waits for the device but for a Gramian."""

from __future__ import annotations

import importlib
import json
import os
from unittest import mock

import pytest
import torch


@pytest.fixture
def gpu():
    """The script, whose import sets variables for processes that follow."""
    with mock.patch.dict(os.environ):
        yield importlib.import_module("benchmarks.gpu")


@pytest.fixture
def brief(gpu, monkeypatch):
    """The script with few watched steps."""
    monkeypatch.setattr("benchmarks.host_waits.LAST", 4)
    return gpu


@pytest.mark.parametrize("rule", ["uniform", "famo", "pcgrad", "task_moe", "mod_squad"])
def test_no_step_waits_for_the_device_without_need(rule, brief):
    found = brief.waits(rule)
    assert found["ok"], found["places"]
    assert bool(found["wanted"]) == (rule == "pcgrad")  # The Gramian of its rows comes to the host.


def test_a_planted_wait_is_found_with_its_place(brief):
    found = brief.waits("uniform", planted=True)
    assert not found["ok"] and any("_peeked" in place for place in found["places"])


def test_small_parts_write_their_rows(gpu, tmp_path, capsys):
    file = tmp_path / "gpu.json"
    assert gpu.main(["surgery", "experts", "data", "--small", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert set(rows) == {"surgery", "experts", "data"} and not [
        r for part in rows.values() for r in part if "error" in r
    ]
    plain, light, theirs = rows["surgery"][:3]
    assert "plain" in plain["what"] and "light" in light["what"] and "TorchJD" in theirs["what"]
    assert len(rows["experts"]) == 6 and all(row["sparse / dense"] > 0 for row in rows["experts"])
    assert rows["data"][0]["both, images/s"] > 0 and "waiting" in capsys.readouterr().out


def test_a_row_that_fails_costs_no_other_row_and_a_late_row_is_named(gpu, tmp_path, monkeypatch):
    def fails():
        raise RuntimeError("out of memory")

    def part(run):
        run.add("data", "first", fails)
        run.ends = 0.0
        run.add("data", "second", dict)

    monkeypatch.setattr(gpu, "PARTS", {"data": part})
    assert gpu.main(["--small", "--json", str(tmp_path / "gpu.json")]) == 1
    first, second = json.loads((tmp_path / "gpu.json").read_text())["rows"]["data"]
    assert first["error"] == "RuntimeError: out of memory" and second["left out"] == "no time left"


def test_ranking_follows_the_leaderboard(gpu, tmp_path):
    (tmp_path / "leaderboard.csv").write_text("rank,label,quantity\n1,famo,a\n1,famo,b\n2,uniform,a\n")
    assert gpu.ranking(tmp_path / "leaderboard.csv") == ["famo", "uniform"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_the_small_form_runs(gpu, capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--small" in capsys.readouterr().err
