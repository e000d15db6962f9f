"""What makes another study, and what makes another run: sources, versions and data of the user's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mtlbench import suite as suites
from mtlbench.runs import seal
from mtlbench.study import record as records
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
    # Two versions of a module within one second and of one length would share their bytecode.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
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


# ---- every part of a key ---------------------------------------------------------------------------------------------


def test_a_key_covers_suite_folder_and_package_and_not_the_devices(project: Path, monkeypatch: Any) -> None:
    def found(*overrides: str, **local: Any) -> str:
        return studies.key_of(suites.load(str(project / "mine.yaml"), overrides), studies.Local(**local))

    usual = key(project)
    (project / "here").mkdir()
    assert found() == usual == found(devices=2)
    other = [found("trainer.steps=3"), found("seeds=[1]"), found(data="here"), key(project, METHOD="pcgrad")]
    key(project)
    monkeypatch.setattr(studies, "__version__", "another")
    other.append(found())
    assert len({usual, *other}) == 1 + len(other) and {len(name) for name in (usual, *other)} == {16}


def test_a_key_sees_names_places_and_sizes_of_data(project: Path) -> None:
    key(project)
    folder = project / "data" / "mine"
    suite = suites.load(str(project / "mine.yaml"), [])

    def of(**files: str) -> str:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.unlink() if path.is_file() or path.is_symlink() else path.rmdir()
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return studies.key_of(suite, studies.Local())

    before = studies.key_of(suite, studies.Local())
    folder.mkdir(parents=True)
    empty, one = of(), of(a="12", b__c="3")
    assert one == of(b__c="4", a="56"), "what is in a file is not read, and their order does not matter"
    others = [of(a="123", b__c="3"), of(d="12", b__c="3"), of(a="12", e__c="3")]
    others += [of(a="12"), of(a="12", b__c="3", f="")]
    (folder / "f").unlink()
    (folder / "f").symlink_to(folder / "nowhere")
    others.append(studies.key_of(suite, studies.Local()))
    assert len({before, empty, one, *others}) == 3 + len(others)


def test_the_folder_of_the_data_is_the_one_named_last(project: Path) -> None:
    key(project)

    def root(*overrides: str, data: str | None = None) -> str | None:
        return studies.root_of(suites.load(str(project / "mine.yaml"), overrides), studies.Local(data))

    assert root() is None and root("data.root=own") == "own" and root("data.root=own", data="given") == "given"
    (project / "data" / "mine").mkdir(parents=True)
    assert root() == "data/mine" and root("data.root=own") == "own"


ROW = {"label": "a", "seed": 0, "runs": ["one"], "serving": {"left": "one"}}


@pytest.mark.parametrize(
    "change",
    [
        {"rows": None}, {"suite": 3}, {"rows": [{**ROW, "label": 1}]}, {"rows": [{**ROW, "seed": "0"}]},
        {"rows": [{**ROW, "runs": {}}]}, {"rows": [{**ROW, "serving": []}]}, {"rows": [{**ROW, "runs": ["../out"]}]},
        {"rows": [{**ROW, "serving": {"left": "a/b"}}]}, {"rows": [ROW, {**ROW, "serving": {}}]},
        {"rows": [{**ROW, "runs": [1]}]},
    ],
)  # fmt: skip
def test_a_study_is_recalled_only_where_its_record_is_whole(change: dict[str, Any], tmp_path: Path) -> None:
    record = {"key": "k", "suite": "mine", "rows": [ROW, ROW]}
    records.remember(tmp_path, record)
    assert records.recall(tmp_path, "k") == seal.sealed(record) and records.recall(tmp_path, "other") is None
    assert (tmp_path / "study.json").read_text() == (tmp_path / "studies" / "k.json").read_text()
    records.remember(tmp_path, {**record, **change})
    assert records.recall(tmp_path, "k") is None


def test_what_is_identity_and_what_is_local(project: Path) -> None:
    key(project)
    (project / "here").mkdir()
    suite = suites.load(str(project / "mine.yaml"), ["trainer.workers=3", "trainer.log_every=7"])
    (spec,) = studies.resolve(suite, studies.Local("here", 2), []).members
    trainer = suite.trainer
    assert spec.local == {
        "checkpoint_every": trainer.checkpoint_every, "log_every": 7, "diagnose_every": trainer.diagnose_every,
        "workers": 3, "examples": trainer.examples, "surgery": "auto", "compile": "",
        "gradient_checkpointing": False, "strategy": "ddp", "root": "here", "devices": 2, "weights": None,
    }  # fmt: skip
    assert spec.trainer == {
        "steps": 2, "batch_size": 8, "accumulate": 1, "precision": "32-true", "clip": trainer.clip,
        "evaluate_every": trainer.evaluate_every, "selection": "last", "protocol": suite.protocol,
        "suite_version": 1,
    }  # fmt: skip
    assert set(spec.data) == {"module", "version", "options", "fingerprint"}
    assert spec.data["options"] == {"train": 16, "val": 8} and spec.seed == 0 and spec.suite == "mine"
    plain = studies.resolve(suites.load(str(project / "mine.yaml"), []), studies.Local(), []).members[0]
    assert plain.run_id == spec.run_id and plain.local["root"] is None
