"""A finished run on texts: predictions for lines of text, and the experts of one task as a network of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mtlbench.cli import main, predict
from mtlbench.networks.experts.extracted import load_extracted
from mtlbench.tasks.inputs import stacked
from mtlbench.training.load import load_run
from tests.support.text_runs import TARGETS, TOKENWISE, trained_on_texts


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of `task_moe` on 40 texts."""
    return trained_on_texts(tmp_path, monkeypatch, experts=3)


def test_lines_are_predicted_and_one_task_is_extracted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["A fine day", "bad, bad", "word " * 30, "so"]
    (tmp_path / "new.txt").write_text("\n".join(lines))
    whole = ["predict", str(run), str(tmp_path / "new.txt"), "--arrays", "--out"]
    assert main([*whole, str(tmp_path / "a")]) == 0
    monkeypatch.setattr(predict, "CHUNK", 3)
    assert main([*whole, str(tmp_path / "b")]) == 0
    table = pd.read_csv(tmp_path / "a" / "new.csv")
    assert list(table) == ["id", "mood", "stars"] and table["id"].tolist() == [f"new-{i}" for i in range(4)]
    assert set(table["mood"]) <= {"bad", "good"}
    with np.load(tmp_path / "a" / "new.npz") as one, np.load(tmp_path / "b" / "new.npz") as two:
        assert np.allclose(one["stars"], two["stars"], atol=1e-5) and np.array_equal(one["mood"], two["mood"])

    out = tmp_path / "mood"
    assert main(["extract", str(run), "--task", "mood", "--threshold", "0", "--out", str(out)]) == 0
    assert "whole" in capsys.readouterr().out
    loaded = load_run(run)
    inputs = stacked([loaded.data.read(tmp_path / "new.txt")[i] for i in range(4)])
    with torch.no_grad():
        alone = load_extracted(out)(inputs)
        kept = loaded.method(inputs)["mood"]
    assert torch.allclose(alone, kept, atol=1e-5) and alone.shape == (4, 2)
    assert main(["extract", str(run), "--task", "mood", "--threshold", "0", "--out", str(out), "--export"]) == 2
    assert "An exported program needs a run on images" in capsys.readouterr().err


def test_tasks_per_token_are_extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their networks choose no padding, as the whole one does."""
    run = trained_on_texts(tmp_path, monkeypatch, targets={**TARGETS, **TOKENWISE}, experts=3)
    loaded = load_run(run)
    samples = loaded.data.samples("test")
    inputs = stacked([samples[i] for i in range(len(samples))])
    for task in TOKENWISE:
        out = tmp_path / task
        assert main(["extract", str(run), "--task", task, "--threshold", "0", "--out", str(out)]) == 0
        with torch.no_grad():
            alone, kept = load_extracted(out)(inputs), loaded.method(inputs)[task]
        assert torch.allclose(alone, kept, atol=1e-5) and alone.shape == (len(samples), 2, inputs["mask"].shape[1])
        assert torch.equal(alone[:, 0] == -torch.inf, ~inputs["mask"]) and not inputs["mask"].all()
