"""A finished run on texts: predictions for lines of text, and the experts of one task as a network of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mtlbench import registry
from mtlbench.cli import main, predict
from mtlbench.networks.experts.extracted import load_extracted
from mtlbench.runs.store import RunFolder
from mtlbench.tasks.inputs import TOKENS, stacked
from mtlbench.testing.toy import toy_spec
from mtlbench.training.load import load_run
from mtlbench.training.run import train

TARGETS = {"mood": {"kind": "classification", "classes": ["bad", "good"]}, "stars": {"kind": "regression"}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of `task_moe` on 40 texts."""
    monkeypatch.setenv("MTLBENCH_CACHE", "off")
    words = ["fine day", "bad", "so so and so", "good good"]
    rows = {"text": [f"{words[i % 4]} {i}" for i in range(40)], "mood": [("bad", "good")[i % 2] for i in range(40)],
            "stars": [i % 5 for i in range(40)]}  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    options = {"file": "rows.csv", "targets": TARGETS, "vocabulary": 20, "length": 9}
    known = registry.load("data_modules.text:Text").tasks_of(options)
    spec = toy_spec("task_moe", steps=2, inputs=TOKENS, arguments={"experts": 3, "top_k": 2}, tasks=[])
    spec = replace(
        spec,
        data={"module": "data_modules.text:Text", "options": options},
        tasks={name: task.describe() for name, task in known.items()},
        trainer={**spec.trainer, "precision": "32-true", "evaluate_every": 0},
        local={**spec.local, "root": str(tmp_path)},
    )
    folder = RunFolder(tmp_path / "results" / "check", spec.run_id)
    assert folder.claim(spec) and train(spec, folder)
    return folder.path


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
