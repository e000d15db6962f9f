"""A task that a run has not seen is routed by its description: as the seen task that it describes, or apart from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtlbench.cli import main
from mtlbench.networks.sentences import sentence_vector
from mtlbench.training.load import load_run
from mtlbench.training.routing_report import NEW, routing
from tests.support.text_encoders import write_encoder
from tests.support.text_runs import TARGETS, trained_on_texts

TEXTS = {"mood": "how good is a text", "stars": "topic of the text", "same": "how good is a text", "other": "bad bad"}


def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> Path:
    """Returns the folder of a run of `task_moe` with four experts on 40 texts."""
    return trained_on_texts(tmp_path, monkeypatch, experts=4, **arguments)


def test_an_unseen_task_is_routed_by_its_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = str(write_encoder(tmp_path / "encoder"))
    run = trained(tmp_path, monkeypatch, gate="description", descriptions=TEXTS, describer=encoder)
    loaded = load_run(run)
    same = routing(loaded, sentence_vector(TEXTS["same"], encoder), loaded.data.samples("val"))
    assert [one.task for one in same.neighbours] == ["mood", "stars"] and same.samples == 6
    assert same.neighbours[0].distance == 0 and same.neighbours[0].cosine == pytest.approx(1)
    assert 0 < same.neighbours[1].distance <= 1
    for table in same.shares.values():
        assert table[NEW] == table["mood"] != table["stars"] and sum(table[NEW]) == pytest.approx(1)

    assert main(["routing", str(run), "--task", "same"]) == 0
    shown = capsys.readouterr().out
    assert "Routing of same before training, on 6 samples of the split val." in shown and "same (new)" in shown
    assert [line.split() for line in shown.splitlines() if line.split()[:1] == ["mood"]][0] == [
        "mood",
        "0.000",
        "1.000",
    ]
    assert main(["routing", str(run)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("before training") == 2 and "Routing of other" in shown and "Routing of same" in shown
    (tmp_path / "new.txt").write_text("one text\nanother\n")
    words = ["--description", "bad bad text", "--file", str(tmp_path / "new.txt")]
    assert main(["routing", str(run), "--task", "third", *words]) == 0
    assert "on 2 samples of" in capsys.readouterr().out

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "rows.csv").rename(tmp_path / "elsewhere/rows.csv")
    assert main(["routing", str(run), "--task", "same"]) == 2 and "rows.csv" in capsys.readouterr().err
    assert main(["routing", str(run), "--task", "same", "--data", str(tmp_path / "elsewhere")]) == 0
    assert "on 6 samples of the split val" in capsys.readouterr().out

    for words, fact in (
        (["--task", "mood"], "was not trained on. mood is one of its tasks mood, stars"),
        (["--task", "third"], "has none of third. Give --task NAME --description TEXT"),
        (["--task", "same", "--file", "absent.txt"], "There is no absent.txt"),
    ):
        assert main(["routing", str(run), *words]) == 2 and fact in capsys.readouterr().err


def test_a_run_with_another_gate_or_another_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = str(write_encoder(tmp_path / "encoder"))
    plain = trained(tmp_path, monkeypatch, describer=encoder)
    assert main(["routing", str(plain), "--task", "new", "--description", "bad"]) == 2
    assert "gate that reads descriptions" in capsys.readouterr().err
    vectors = {task: [1.0, float(len(task))] for task in TARGETS}
    short = trained(tmp_path, monkeypatch, gate="description", descriptions=vectors, describer=encoder)
    assert main(["routing", str(short), "--task", "new", "--description", "bad"]) == 2
    assert "have 2 numbers, and this one 16" in capsys.readouterr().err
