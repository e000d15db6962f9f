"""Text from elsewhere never reaches the terminal raw, and names from elsewhere lead nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtlbench.errors import ExitCode, StoreError, inert
from mtlbench.runs.store import RunFolder, write_json
from tests.support.command_line import mtlbench

ESCAPE = "\x1b]0;owned\x07 \x1b[2J\u202e"
RUN = "uniform-s0-12345678"
LONG = "9" * 5000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of one failed run whose every text holds terminal escapes."""
    root = tmp_path / "results/small"
    (root / RUN).mkdir(parents=True)
    row = {"label": f"uni{ESCAPE}", "method": "uniform", "seed": 0, "runs": [RUN], "serving": {}, "error": ESCAPE}
    study = {
        "format": 1,
        "suite": "small",
        "version": 1,
        "title": ESCAPE,
        "overrides": [ESCAPE],
        "baseline": "x",
        "selection": "last",
        "split": "val",
        "named": [],
        "search": ESCAPE,
        "seeds": [0],
        "removed": [],
        "key": "k",
        "tasks": {},
        "encoders": [ESCAPE],
        "rows": [row],
        "commit": None,
        "dirty": False,
        "package": "0",
        "data": "d",
        "created": "2026-01-01T00:00:00",
        "run_tasks": {RUN: [f"a{ESCAPE}"]},
    }
    write_json(root / "study.json", study)
    record = {"type": f"Error{ESCAPE}", "message": f"It fell.{ESCAPE}\nSecond line.", "traceback": ""}
    write_json(root / RUN / "error.json", record)
    return tmp_path


@pytest.mark.parametrize("command", ["status", "report"])
def test_no_escape_of_a_record_reaches_the_terminal(command: str, folder: Path) -> None:
    answer = mtlbench(folder, command, "small")
    assert answer.code == ExitCode.FAILED and f"FAILED {RUN}" in answer.text and "It fell." in answer.text
    assert not set(answer.text) & set("\x1b\x07\u202e"), repr(answer.text)


def test_no_escape_of_a_request_reaches_the_terminal(tmp_path: Path) -> None:
    answer = mtlbench(tmp_path, "bench", "digits", f"methods=[{ESCAPE}]")
    assert answer.code == ExitCode.REFUSED and not set(answer.text) & set("\x1b\x07\u202e"), repr(answer.text)


def test_inert_keeps_lines_and_reaches_every_level() -> None:
    assert inert({"a\x00": ["b\x1b\n\tc", 1, None]}) == {"a\ufffd": ["b\ufffd\n\tc", 1, None]}


@pytest.mark.parametrize("name", ["", "..", ".", "../other", "a/b", "/etc", "a\nb", "x" * 101])
def test_the_id_of_a_run_is_one_part_of_a_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="one plain part"):
        RunFolder(tmp_path, name)


@pytest.mark.parametrize(
    "words",
    [
        ["status", "digits", "--results", LONG],
        ["bench", "digits", "--dry", "--results", LONG],
        ["bench", "pascal", "--dry", f"data.root={LONG}"],
        ["data", "pascal", "--verify", "--data", LONG],
        ["predict", LONG, "a.png"],
        ["compare", LONG, LONG],
    ],
    ids=lambda words: words[0],
)
def test_a_name_that_no_file_system_holds_is_refused_in_one_line(words: list[str], tmp_path: Path) -> None:
    answer = mtlbench(tmp_path, *words)
    assert answer.code == ExitCode.REFUSED and "999" in answer.text
    assert "Traceback" not in answer.text and "Correct the code" not in answer.text
    assert len([line for line in answer.text.splitlines() if "mtlbench: " in line]) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "digits", "data.module=os:system", "--dry"],
        ["run", "digits", "data.module=os:system", "--method", "uniform"],
        ["data", "digits", "--set", "data.module=os:system"],
        ["bench", "digits", "methods=[os:system]", "--dry"],
        ["run", "digits", "--method", "os:system"],
        ["check", "os:system"],
    ],
)
def test_a_name_of_something_else_is_refused(words: list[str], tmp_path: Path) -> None:
    answer = mtlbench(tmp_path, *words)
    assert answer.code == ExitCode.REFUSED and "os:system" in answer.text and "built-in function" in answer.text
    assert not list(tmp_path.rglob("spec.json")), "nothing was trained"


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["digits", "data.options.val=0"], ["Every split needs at least one sample", "val of data_modules.digits"]),
        (["digits", "data.options.train=7"], ["trainer.batch_size", "of 7 samples"]),
        (["scenes", "data.options.train=7"], ["trainer.batch_size", "of 7 samples"]),
    ],
)
def test_sizes_that_cannot_be_trained_are_refused_at_once(words: list[str], facts: list[str], tmp_path: Path) -> None:
    cache = ["data.options.cache=" + json.dumps(str(tmp_path / "cache"))] if words[0] == "scenes" else []
    answer = mtlbench(tmp_path, "bench", *words, *cache, "--dry")
    assert answer.code == ExitCode.REFUSED and all(fact in answer.text for fact in facts), answer.text
    assert not (tmp_path / "cache").exists(), "nothing was rendered for it"
