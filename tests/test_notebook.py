"""The cells of the notebook page run, and page and notebook hold the same cells with their outputs."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import SMALL, mtlbench

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "notebook.md").read_text()
ASKED = 'seeds=3, settings={"trainer.steps": 100}'
STEPS = "trainer.steps=2"


def tool() -> Any:
    """Returns the program that executes the page."""
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "benchmarks" / "notebook.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Trained here, where torch is imported already, so that the page's own bench finds everything done.
    methods = ("--methods", "single_task uniform pcgrad", "--seeds", "1")
    answer = mtlbench(tmp_path, "bench", "digits", *SMALL, STEPS, *methods)
    assert answer.code == 0, answer.text
    settings = dict(text.split("=", 1) for text in (*SMALL, STEPS))
    short = f"seeds=1, settings={ {key: json.loads(value) for key, value in settings.items()} }"
    assert PAGE.count(ASKED) == 1
    monkeypatch.chdir(tmp_path)
    notebook, names, values = tool(), {}, []
    for kind, code in notebook.parts(PAGE.replace(ASKED, short)):
        if kind == "code":
            printed, value = notebook.execute(code, names)
            values.append((notebook.shown(printed, value), notebook.outputs(printed, value, 1)))
    shown = [text for text, _ in values]
    assert (
        "single_task" in shown[1] and "<table" in shown[1] and "\\toprule" in shown[7] and "yu2020gradient" in shown[8]
    )
    assert "'segments': (2, 4, 20, 24)" in shown[9], "the network predicts"
    assert "application/vnd.plotly.v1+json" in values[6][1][0]["data"]


def test_page_and_notebook_were_executed_together() -> None:
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["source"] + "\n" for cell in cells] == [code for kind, code in tool().parts(PAGE) if kind == "code"]
    followed = re.findall(r"```python\n.*?```\n(\n<!-- output -->\n)?", PAGE, re.DOTALL)
    assert [bool(cell["outputs"]) for cell in cells] == [bool(mark) for mark in followed] and all(followed)
    for text in (PAGE, json.dumps(notebook)):
        assert not re.search(r"/(home|root|tmp|Users)/", text), "no path of a machine"
