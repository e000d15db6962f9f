"""The cells of the notebook page run, and page and notebook hold the same cells with their outputs."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtlbench import suite as suites
from mtlbench.bench.scheduler import Bench
from mtlbench.errors import ExitCode
from mtlbench.runs.spec import RunSpec
from mtlbench.study import resolve as studies
from mtlbench.training.worker import Seat, work
from tests.support.command_line import SMALL
from tests.support.instant import Instant

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "notebook.md").read_text()
ASKED = 'seeds=3, settings={"trainer.steps": 100}'
METHODS = "methods=[single_task, uniform, pcgrad]"


def tool() -> Any:
    """Returns the program that executes the page."""
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "benchmarks" / "notebook.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Mostly(Instant):
    """Trains the runs of `uniform`, whose weights a cell loads, and writes all others down."""

    def start(self, spec: RunSpec) -> None:
        if spec.label != "uniform":
            return super().start(spec)
        assert work(str(self.root), spec.to_json(), Seat()) == ExitCode.DONE
        self.started.append(spec)


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Done before the page's own bench, which then finds nothing to train.
    root = tmp_path / "results" / "digits"
    root.mkdir(parents=True)
    settings = [*SMALL, "trainer.steps=4"]
    study = studies.resolve(suites.load("digits", [*settings, METHODS]), studies.Local(), settings)
    Bench(root, study, Mostly(root)).run()
    values = {key: yaml.safe_load(value) for key, value in (text.split("=", 1) for text in settings)}
    short = f"seeds=1, settings={values!r}"
    assert PAGE.count(ASKED) == 1
    monkeypatch.chdir(tmp_path)
    notebook, names = tool(), {}
    made = []
    for kind, code in notebook.parts(PAGE.replace(ASKED, short)):
        if kind == "code":
            printed, value = notebook.execute(code, names)
            made.append((notebook.shown(printed, value), notebook.outputs(printed, value, 1)))
    shown = [text for text, _ in made]
    assert (
        "single_task" in shown[1] and "<table" in shown[1] and "\\toprule" in shown[7] and "yu2020gradient" in shown[8]
    )
    assert "'segments': (2, 3, 24, 32)" in shown[9], "the network predicts"
    assert "application/vnd.plotly.v1+json" in made[6][1][0]["data"]


def test_page_and_notebook_were_executed_together() -> None:
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["source"] + "\n" for cell in cells] == [code for kind, code in tool().parts(PAGE) if kind == "code"]
    followed = re.findall(r"```python\n.*?```\n(\n<!-- output -->\n)?", PAGE, re.DOTALL)
    assert [bool(cell["outputs"]) for cell in cells] == [bool(mark) for mark in followed] and all(followed)
    for text in (PAGE, json.dumps(notebook)):
        assert not re.search(r"/(home|root|tmp|Users)/", text), "no path of a machine"
