"""Whatever a command prints, the terminal gets no control characters, and no encoding ends a command."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtlbench import cli
from mtlbench.errors import ExitCode, InertStream, coloured_output, inert_output
from tests.cli.test_foreign_text import ESCAPE
from tests.support.command_line import SMALL, mtlbench
from tests.support.fake_study import write_study

RAW = set("\x1b\x07\u202e\r")
OWN = f"""
from mtlbench import MTLMethod
from mtlbench.data_modules.digits import Digits

TEXT = {ESCAPE!r}

class Loud(MTLMethod):
    __doc__ = "Loud: " + TEXT

    def combine_losses(self, losses, ctx):
        print("a word " + TEXT)
        raise RuntimeError("fell " + TEXT)

class Falls(MTLMethod):
    def build_network(self):
        raise RuntimeError("fell " + TEXT)

class Lost(Digits):
    def missing(self):
        return ["lost " + TEXT]

class Full(Digits):
    def prepare_data(self):
        raise OSError(28, "full " + TEXT)

class Doubtful(Digits):
    def fingerprint(self):
        return ""

    def unidentified(self):
        return "nobody knows " + TEXT
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "loud.py").write_text(OWN)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/mine.yaml").write_text('title: "mine \\e]0;owned\\a \\u202e"\n')
    return tmp_path


@pytest.mark.parametrize(
    ("words", "fact", "code"),
    [
        (["suites"], "mine", 0),
        (["methods", "loud:Loud"], "Loud: ", 0),
        (["data", "digits", "data.module=loud:Lost"], "lost ", 2),
        (["check", "loud:Falls"], "fell ", 1),
        (["bench", "digits", "--methods", "loud:Falls", "--dry"], "fell ", 2),
        (["bench", "digits", "data.module=loud:Lost"], "lost ", 2),
        (["bench", "digits", "data.module=loud:Full", "--methods", "uniform"], "full ", 2),
        (["bench", "digits", "data.module=loud:Doubtful", "--methods", "uniform", "--dry"], "Warning: nobody knows", 0),
        (["run", "digits", "--method", "loud:Loud", *SMALL], "a word ", 2),
        (["bench", f"no{ESCAPE}"], "Unknown suite", 2),
        (["bench", "digits", f"--no{ESCAPE}".replace(" ", "")], "unrecognized arguments: --no", 2),
        (["predict", f"no{ESCAPE}", "a.png"], "is not a run's folder", 2),
        (["init", f"no{ESCAPE}"], "Wrote no", 0),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else None,
)
def test_nothing_raw_is_printed(words: list[str], fact: str, code: int, folder: Path) -> None:
    answer = mtlbench(folder, *words)
    assert answer.code == code and fact in answer.text, answer.text
    assert not set(answer.text) & RAW, repr(answer.text)


def test_nothing_raw_gets_into_a_log(folder: Path) -> None:
    answer = mtlbench(folder, "bench", "digits", "--methods", "loud:Loud", *SMALL, "--jobs", "1")
    assert answer.code == ExitCode.FAILED and "fell " in answer.text and not set(answer.text) & RAW
    (log,) = folder.glob("results/digits/logs/*.log")
    text = log.read_text()
    assert "a word \N{REPLACEMENT CHARACTER}" in text and "Traceback" in text and not set(text) & RAW


def test_the_traceback_of_a_fault_of_mtlbench_is_inert_and_ends_with_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def falls(arguments: object) -> int:
        raise ZeroDivisionError(ESCAPE)

    monkeypatch.setattr("mtlbench.cli.suites.run", falls)
    answer = mtlbench(folder, "suites")
    assert answer.code == ExitCode.FAILED and "ZeroDivisionError" in answer.text and "Please report it" in answer.text
    assert not set(answer.text) & RAW


@pytest.mark.parametrize("label", ["[/red]", "[link=x]y[/link]", "[bold]"])
@pytest.mark.parametrize("command", ["status", "report"])
def test_a_label_is_no_instruction_to_the_terminal(command: str, label: str, tmp_path: Path) -> None:
    study = write_study(tmp_path / "results/scenes", ["single_task", "uniform"]) / "study.json"
    study.write_text(study.read_text().replace('"label": "uniform"', f'"label": "{label}"'))
    answer = mtlbench(tmp_path, command, "scenes")
    assert label in answer.text and "Traceback" not in answer.text, answer.text


def test_streams_pass_on_everything_else() -> None:
    beneath = io.StringIO()
    stream = InertStream(beneath)
    print("a\x1b[2Jb\n\tc", file=stream)
    stream.writelines(["\x07", "d"])
    assert beneath.getvalue() == "a\ufffd[2Jb\n\tc\n\ufffdd" and stream.getvalue() == beneath.getvalue()
    before = sys.stdout
    with inert_output():
        assert isinstance(sys.stdout, InertStream) and coloured_output() is before
    assert sys.stdout is before and coloured_output() is before


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["report", "scenes"], ["Dm", "+-", "-"]),
        (["status", "scenes"], ["21 done"]),
        (["bench", "digits", "trainer.steps=-1", "title=Δ…"], ["must be at least 1"]),
        (["methods"], ["famo"]),
        (["methods", "famo"], ["FAMO"]),
        (["--help"], ["bench"]),
        (["suites"], ["digits"]),
        (["data", "digits", "title=Δ…"], ["500 samples"]),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_an_ascii_terminal_gets_ascii(words: list[str], facts: list[str], tmp_path: Path) -> None:
    write_study(tmp_path / "results/scenes", ["single_task", "uniform"])
    done = subprocess.run(
        [sys.executable, "-m", "mtlbench.cli", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "120"},
        capture_output=True,
    )
    text = (done.stdout + done.stderr).decode("ascii")
    assert "Traceback" not in text and [fact for fact in facts if fact not in text] == [], text


def test_a_minus_sign_stays_one_in_ascii() -> None:
    command = "import sys; from mtlbench.errors import inert_output\nwith inert_output(): print('−0.5 ± 1 … ж')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
    assert done.stdout == "-0.5 +- 1 ... \\u0436\n", done.stderr


def test_every_table_writes_beneath_the_inert_stream() -> None:
    """Rich's own colours would be replaced otherwise; what it is given is made inert where it is read."""
    package = Path(cli.__file__).parents[1]
    without = [path for path in package.rglob("*.py") if "Console()" in path.read_text()]
    assert without == []
