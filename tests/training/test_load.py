"""A stored run imports only what is shipped, registered, or allowed by name, and nothing from a results folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from mtlbench import load_run
from mtlbench.errors import MethodError, StoreError
from mtlbench.registry import Trusted, load
from mtlbench.runs.store import RunFolder
from tests.support.command_line import SMALL, mtlbench, runs_of
from tests.support.forge import forged

METHOD = """\
from mtlbench import MTLMethod


class Plain(MTLMethod):
    pass
"""
BOOBY_TRAP = "from pathlib import Path\nPath({sprung!r}).touch()\nclass Trap: pass\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder]:
    """A project with a method of its own, and a finished run of it."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "own_rule.py").write_text(METHOD)
    answer = mtlbench(folder, "bench", "digits", *SMALL, "trainer.steps=2", "--methods", "own_rule:Plain")
    [run] = runs_of(folder).values()
    assert run.result(), answer.text
    return folder, run


@pytest.fixture
def project(finished: tuple[Path, RunFolder], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project as the current folder; returns the run's folder."""
    folder, run = finished
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "own_rule", raising=False)
    return folder / "results" / "digits" / run.path.name


def test_own_code_of_a_run_needs_permission(project: Path) -> None:
    with pytest.raises(MethodError, match=r"names 'own_rule:Plain'.*--allow own_rule"):
        load_run(project)
    assert "own_rule" not in sys.modules
    assert type(load_run(project, allow=["own_rule"]).method).__name__ == "Plain"
    assert type(load_run(project, allow="own_rule").method).__name__ == "Plain"


@pytest.mark.parametrize("key", ["data", "method", "balancer"])
def test_code_that_came_with_the_results_never_runs(project: Path, tmp_path: Path, key: str) -> None:
    """Also if the user allows the name: a results folder is importable as a namespace package."""
    sprung, trap = tmp_path / "sprung", "results.digits.trap:Trap"

    def change(spec: dict[str, Any]) -> None:
        spec["method"] = {**spec["method"], "path": "uniform", "name": "uniform"}
        if key == "data":
            spec["data"]["module"] = trap
        elif key == "method":
            spec["method"]["path"] = trap
        else:
            spec["method"]["balancer"] = {"name": "trap", "path": trap, "arguments": {}}
            spec["method"].update(path="mtlbench.method:MTLMethod")

    (project.parent / "trap.py").write_text(BOOBY_TRAP.format(sprung=str(sprung)))
    folder = forged(project, change)
    try:
        with pytest.raises(MethodError, match="imports only shipped code"):
            load_run(folder)
        with pytest.raises(MethodError, match="never imports code from a results folder"):
            load_run(folder, allow=["results"])
    finally:
        shutil.rmtree(folder)
        (project.parent / "trap.py").unlink()
    assert not sprung.exists()


def test_shipped_code_needs_no_permission() -> None:
    trusted = Trusted()
    assert load("data_modules.digits:Digits", trusted=trusted).__name__ == "Digits"
    assert load("mtlbench.data_modules.digits:Digits", trusted=trusted).__name__ == "Digits"
    assert load("mtlbench.methods.losses.uniform:Uniform", trusted=trusted).__name__ == "Uniform"


@pytest.mark.parametrize("path", ["os:system", "mtlbench_evil:X", "mtlbench.cli.__main__:main", "data_modules.own:X"])
def test_anything_else_is_refused(path: str) -> None:
    with pytest.raises(MethodError, match="imports only shipped code"):
        load(path, trusted=Trusted())


def test_permission_for_a_package_covers_its_modules_and_no_namesake(tmp_path: Path) -> None:
    Trusted(("own",)).check("own.rules.a:A")
    Trusted(("own.rules",)).check("own.rules:A")
    for name in ("owner:A", "own:A"):
        with pytest.raises(MethodError, match="imports only"):
            Trusted(("own.rules",)).check(name)


def test_a_data_module_must_be_one(project: Path) -> None:
    folder = forged(project, lambda spec: spec["data"].update(module="mtlbench.errors:unknown_name"))
    try:
        with pytest.raises(MethodError, match="subclass of MTLDataModule"):
            load_run(folder, allow=["own_rule"])
    finally:
        shutil.rmtree(folder)


def test_a_changed_specification_is_refused(project: Path) -> None:
    """It would build another network, or another data module, than the one whose scores the result holds."""
    path = project / "spec.json"
    before = path.read_text()
    spec = json.loads(before)
    spec["model"]["decoder_channels"] = 16
    try:
        for text in (json.dumps(spec), "{", "[]", json.dumps({**spec, "hash": "0" * 64})):
            path.write_text(text)
            with pytest.raises(StoreError, match="spec.json is damaged. Run the bench again, which writes it anew"):
                load_run(project, allow=["own_rule"])
    finally:
        path.write_text(before)


def test_weights_of_another_run_are_refused_even_with_their_own_hash(project: Path) -> None:
    """The hash in the result counts, and not the file beside the weights, which is copied along with them."""
    weights, beside = project / "final.ckpt", project / "final.ckpt.sha256"
    content, digest = weights.read_bytes(), beside.read_bytes()
    other = bytearray(content)
    other[len(other) // 2] ^= 1
    try:
        weights.write_bytes(other)
        beside.write_text(hashlib.sha256(other).hexdigest())
        with pytest.raises(StoreError, match="must match their sha256"):
            load_run(project, allow=["own_rule"])
        weights.write_bytes(content + b"more")
        with pytest.raises(StoreError, match="final.ckpt is not the file that was written with the result"):
            load_run(project, allow=["own_rule"])
    finally:
        weights.write_bytes(content)
        beside.write_bytes(digest)
    beside.unlink()
    assert load_run(project, allow=["own_rule"]).result["steps"] == 2, "the result alone is enough"


def test_weights_of_an_earlier_version_are_compared_with_the_file_beside_them(project: Path) -> None:
    path, beside = project / "result.json", project / "final.ckpt.sha256"
    before = path.read_text()
    beside.write_text(hashlib.sha256((project / "final.ckpt").read_bytes()).hexdigest())
    old = {key: value for key, value in json.loads(before).items() if key not in ("digest", "files")}
    try:
        path.write_text(json.dumps(old))
        assert load_run(project, allow=["own_rule"]).result == old
        beside.write_text("0" * 64)
        with pytest.raises(StoreError, match="must match their sha256"):
            load_run(project, allow=["own_rule"])
    finally:
        path.write_text(before)
        beside.write_text(hashlib.sha256((project / "final.ckpt").read_bytes()).hexdigest())
