"""What makes another study, and what makes another run: sources, versions and data of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtlbench import suite as suites
from mtlbench.study import resolve as studies
from tests.support.command_line import mtlbench

MODULE = """
from mtlbench.balancing import Balancer
from mtlbench.data_modules.digits import Digits

class Mine(Digits):
    VERSION = 1

class Rule(Balancer):
    VERSION = 1

    def __init__(self, strength=1.0):
        super().__init__()
        self.strength = strength
"""
SUITE = """
name: mine
version: 1
data: {module: "DATA", options: {train: 16, val: 8}}
model: {encoder: resnet18, image_size: [32, 32]}
trainer: {steps: 2, batch_size: 8}
floor: false
methods: [METHOD]
"""


def key(folder: Path, **changes: str) -> str:
    """Returns the key of a study without importing what its suite names."""
    text = SUITE
    for word, value in {"DATA": "data_modules.digits:Digits", "METHOD": "uniform", **changes}.items():
        text = text.replace(word, value)
    (folder / "mine.yaml").write_text(text)
    return studies.key_of(suites.load(str(folder / "mine.yaml"), []), studies.Local())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "named",
    [
        {"DATA": "rules_of_mine:Mine"},
        {"METHOD": '"rules_of_mine:Rule"'},
        {"METHOD": '{name: "rules_of_mine:Rule", strength: 2.0}'},
        {"METHOD": '{name: uniform, balancer: "rules_of_mine:Rule"}'},
        {"METHOD": '{name: uniform, balancer: {name: "rules_of_mine:Rule"}}'},
    ],
)
@pytest.mark.parametrize("file", ["rules_of_mine.py", "rules_of_mine/__init__.py", "rules_of_mine/deeper/part.py"])
def test_a_changed_source_that_a_suite_names_makes_another_study(
    named: dict[str, str], file: str, project: Path
) -> None:
    path = project / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MODULE)
    before, other = key(project, **named), key(project)
    path.write_text(MODULE + "\n# changed\n")
    assert key(project, **named) != before and key(project) == other, "only a study that names it"
    path.write_text(MODULE)
    assert key(project, **named) == before


def runs(folder: Path, text: str, **changes: Any) -> dict[str, str]:
    """Returns what a dry bench names as its runs, by label."""
    (folder / "rules_of_mine.py").write_text(text)
    key(folder, DATA="rules_of_mine:Mine", METHOD='{name: "rules_of_mine:Rule", strength: 2.0}', **changes)
    answer = mtlbench(folder, "bench", "mine.yaml", "--dry")
    assert answer.code == 0, answer.text
    return _ids(folder)


def _ids(folder: Path) -> dict[str, str]:
    import sys

    sys.path.insert(0, str(folder))
    try:
        found = studies.resolve(suites.load(str(folder / "mine.yaml"), []), studies.Local(), [])
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("rules_of_mine", None)
    return {spec.label: spec.run_id for spec in found.members}


def test_a_version_makes_other_runs_and_a_comment_does_not(project: Path) -> None:
    first = runs(project, MODULE)
    assert runs(project, MODULE + "\n# a comment\n") == first
    data, rule = (MODULE.replace(f"class {c}:\n    VERSION = 1", f"class {c}:\n    VERSION = 2") for c in CLASSES)
    assert MODULE not in (data, rule)
    assert len({first["Rule"], runs(project, data)["Rule"], runs(project, rule)["Rule"]}) == 3


CLASSES = ("Mine(Digits)", "Rule(Balancer)")
