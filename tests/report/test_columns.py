"""A column is one entry of one list: every view shows what is added there."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from mtlbench.report import columns, load
from mtlbench.report.views import files, html
from mtlbench.report.views.terminal import show_board
from tests.support.fake_study import write_study


def views_of(folder):
    """Returns the text of every view."""
    study, board = load(folder)
    stream = io.StringIO()
    show_board(board, Console(file=stream, width=250))
    return {
        "terminal": stream.getvalue(),
        "markdown": files.markdown(board),
        "csv": files.tidy_csv(board),
        "latex": files.latex(board),
        "html": html.render(study, board),
    }


@pytest.fixture
def folder(tmp_path):
    """Returns a results folder whose runs measured their energy: 3 J and, in seed 1, 6 J."""
    folder = write_study(tmp_path / "scenes", ["single_task", "uniform"])
    for path in folder.glob("*/result.json"):
        record = json.loads(path.read_text())
        record["cost"]["energy"] = 6 if "-s1-" in path.parent.name else 3
        path.write_text(json.dumps(record))
    return folder


def energy(**others):
    return columns.cost(
        "energy",
        "joule_s",
        lambda v: f"{v:.3f} J",
        unit="J",
        tip="energy per step",
        note="as the meter shows it",
        **others,
    )


def test_one_entry_adds_a_column_to_every_view(folder, monkeypatch):
    assert not any("joule" in text for text in views_of(folder).values())
    monkeypatch.setattr(columns, "COSTS", (*columns.COSTS, energy()))
    views = views_of(folder)
    for name in ("terminal", "markdown", "latex", "html"):
        assert ("joule\\_s" if name in ("markdown", "latex") else "joule_s") in views[name]
        # `uniform` has one run per seed: the mean of 3, 6 and 3; `single_task` the sum over six.
        assert "4.000 J" in views[name] and "24.000 J" in views[name], name
    lines = list(csv.DictReader(io.StringIO(views["csv"])))
    found = {x["label"]: x for x in lines if x["quantity"] == "energy"}
    assert float(found["uniform"]["mean"]) == 4 and (found["uniform"]["unit"], found["uniform"]["better"]) == (
        "J",
        "lower",
    )
    assert all("as the meter shows it" in views[name] for name in ("terminal", "markdown", "html"))
    assert 'title="energy per step"' in views["html"]


def test_a_column_says_how_runs_are_merged_and_where_it_shows(folder, monkeypatch):
    entry = energy(merge=max, views=frozenset({"csv", "html"}))
    monkeypatch.setattr(columns, "COSTS", (*columns.COSTS, entry))
    views = views_of(folder)
    assert views["html"].count("4.000 J") == 2 * 2 and "energy" in views["csv"]
    assert not any("4.000 J" in views[name] for name in ("terminal", "markdown", "latex"))
