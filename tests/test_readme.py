"""The README's method is run as it stands, and every command that the README shows exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mtlbench import registry
from mtlbench.balancing import Balancer
from mtlbench.cli import _parser
from tests.support.command_line import mtlbench

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Returns the code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[str]:
    """Returns every command of the README, from blocks and tables, without its comment."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    lines += re.findall(r"\| `((?:WANDB_MODE=\w+ )?make [^`]*)`", TEXT)
    return sorted({line.partition("#")[0].strip() for line in lines} - {""})


def test_the_method_of_the_readme_passes_the_contract_tests_and_trains(tmp_path: Path) -> None:
    code = next(block for block in blocks("python") if "MTLMethod" in block)
    assert len(code.splitlines()) <= 12
    (tmp_path / "my_method.py").write_text(code)
    check = mtlbench(tmp_path, "check", "my_method:LogSum")
    assert check.code == 0 and "4 of 4 checks passed" in check.text, check.text
    words = ("--methods", "uniform my_method:LogSum", "trainer.steps=4", "data.options.train=64", "data.options.val=16")
    bench = mtlbench(tmp_path, "bench", "digits", *words)
    assert bench.code == 0 and "LogSum" in bench.text, bench.text


def test_the_balancers_by_hand_of_the_docs_run() -> None:
    text = (ROOT / "docs" / "balancers.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "docs/balancers.md", "exec"), {})


def test_the_docs_name_every_balancer() -> None:
    text = (ROOT / "docs" / "balancers.md").read_text()
    balancers = {name for name in registry.shipped() if issubclass(registry.find(name), Balancer)}
    assert [name for name in balancers if f"`{name}`" not in text] == [] and len(balancers) > 30


@pytest.mark.parametrize("command", commands())
def test_shown_commands_exist(command: str) -> None:
    words = [word for word in shlex.split(command) if not word.startswith("WANDB_MODE=")]
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        variables = {word.partition("=")[0] for word in words[2:]}
        assert variables <= set(re.findall(r"[A-Z]+", (ROOT / "Makefile").read_text()))
    else:
        assert words[0] == ".venv/bin/mtlbench"
        _parser().parse_args(words[1:])
