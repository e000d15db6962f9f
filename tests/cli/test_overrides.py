"""Every command that changes a suite takes ``KEY=VALUE`` as a word and after ``--set``; the others say who does."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtlbench import cli
from mtlbench.cli.arguments import overrides_of
from mtlbench.errors import ExitCode
from mtlbench.runs.store import read_json
from tests.support.command_line import SMALL, mtlbench

CHANGING = {
    "bench": (["bench", "digits", "--dry", "--methods", "uniform"], "trainer.steps=7", "7 steps each", ExitCode.DONE),
    "run": (["run", "digits", "--method", "uniform", *SMALL], "trainer.steps=2", "done", ExitCode.DONE),
    "cost": (["cost", "digits"], "trainer.steps=0", "trainer.steps must be at least 1", ExitCode.REFUSED),
    "data": (["data", "digits"], "data.options.train=7", " 7 samples", ExitCode.DONE),
    "check": (["check", "data_modules.digits:Digits"], "val=0", "Split val is empty", ExitCode.FAILED),
}
"""Command -> its words, a change, what shows that it arrived, and the exit code."""
READING = (
    "status", "report", "serve", "dashboard", "sync", "video", "suites", "methods", "extract", "export", "init",
    "routing",
)  # fmt: skip
"""Commands that take no change."""
OPEN = {"predict": ["run", "image"], "compare": ["folder"]}
"""Commands that take no change, but any number of files or folders of any name."""


def test_the_tables_name_every_command() -> None:
    assert {*CHANGING, *READING, *OPEN} == set(cli.COMMANDS)


@pytest.mark.parametrize("form", ["word", "set", "before", "both"])
@pytest.mark.parametrize("command", CHANGING)
def test_both_forms_arrive(command: str, form: str, tmp_path: Path) -> None:
    words, change, fact, code = CHANGING[command]
    name, target, *options = words
    other = f"{change.partition('=')[0]}=3"
    given = {
        "word": [name, target, *options, change],
        "set": [name, target, *options, "--set", change],
        "before": [name, target, change, *options],
        "both": [name, target, other, *options, "--set", change],
    }[form]
    answer = mtlbench(tmp_path, *given)
    assert answer.code == code and fact in answer.text, answer.text
    if command == "run":
        (spec,) = tmp_path.glob("results/digits/*/spec.json")
        assert (read_json(spec) or {})["trainer"]["steps"] == 2


def test_changes_apply_in_the_order_that_the_help_states() -> None:
    arguments = cli._parse(["bench", "digits", "a=1", "--set", "a=2", "b=3", "--jobs", "1", "c=4", "--set", "d=5"])
    assert overrides_of(arguments) == ["a=1", "c=4", "a=2", "b=3", "d=5"]


@pytest.mark.parametrize("command", [*READING, *OPEN])
@pytest.mark.parametrize("form", [["trainer.steps=7"], ["--set", "trainer.steps=7"]], ids=["word", "set"])
def test_a_command_that_reads_refuses_changes(command: str, form: list[str], tmp_path: Path) -> None:
    words = {"suites": [], "init": ["folder"], "export": ["run", "--to", "folder"], **OPEN}.get(command, ["digits"])
    answer = mtlbench(tmp_path, command, *words, *form)
    assert answer.code == ExitCode.REFUSED, answer.text
    if command not in OPEN or form[0] == "--set":
        assert "Pass changes to the suite to mtlbench bench" in answer.text, answer.text
