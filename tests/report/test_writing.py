"""Files of the report are replaced as a whole, and its input is named when it is too old."""

from __future__ import annotations

import csv
import errno
import io
import json
import os

import numpy as np
import pytest
from rich.console import Console

from mtlbench import cli
from mtlbench.errors import StoreError
from mtlbench.report import load, show, write
from mtlbench.report.figures.scores import gains
from mtlbench.report.figures.style import BETTER, UNCERTAIN, WORSE
from tests.support.fake_study import plan, write_study


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_report_whole(tmp_path, monkeypatch, capsys):
    folder = write_study(tmp_path / "scenes", ["single_task", "uniform"])
    written = {path: path.read_bytes() for path in write(folder)}
    (folder / "study.json").write_text((folder / "study.json").read_text().replace("Rendered rooms", "Other rooms"))
    monkeypatch.setattr("mtlbench.runs.store.os.fsync", full_disk)
    with pytest.raises(StoreError, match="No space left on device"):
        write(folder)
    assert {path: path.read_bytes() for path in written} == written
    assert not list(folder.glob(".leaderboard*")), "no half-written file stays"
    assert cli.main(["report", "scenes", "--results", str(tmp_path)]) != 0
    output = capsys.readouterr()
    assert "No space left on device" in output.err and "Written" not in output.out


def test_a_study_of_an_earlier_version_asks_for_a_new_bench(tmp_path):
    record = plan(["single_task"], ["semseg"], [0]) | {"study": {"text": "label fractions"}}
    (tmp_path / "study.json").write_text(json.dumps(record))
    with pytest.raises(StoreError, match="Run the bench again to write it anew"):
        load(tmp_path)


def test_only_a_gain_whose_interval_excludes_0_is_coloured(tmp_path):
    board = load(write_study(tmp_path / "scenes"))[1]
    seen = set()
    means = [trace for trace in gains(board).data if trace.marker.symbol == "diamond"]
    for trace, task in zip(means, [c.task for c in board.primary if c.in_delta_m], strict=True):
        rows = [row for row in board.rows if row.gains][::-1]
        known = [row.gains[task].estimate for row in rows if task in row.gains]
        for found, colour in zip(known, trace.marker.color, strict=True):
            certain = found.low is not None and found.low * found.high > 0
            assert colour == ((BETTER if found.mean > 0 else WORSE) if certain else UNCERTAIN)
            seen.add(certain)
    assert seen == {True, False}


def test_terminal_escapes_and_formulas_are_inert(tmp_path):
    folder = write_study(tmp_path / "scenes", ["single_task", "uniform"])
    escape, formulas = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e", ("=1+1", "+1", "-1", "@SUM(A1)")
    record = json.loads((folder / "study.json").read_text())
    record["title"] = escape
    for entry in record["rows"]:
        if entry["label"] == "uniform":
            entry |= {"label": formulas[entry["seed"]], "method": formulas[3 - entry["seed"]]}
    (folder / "study.json").write_text(json.dumps(record))
    run = folder / record["rows"][-1]["runs"][0]
    (run / "result.json").unlink()
    (run / "error.json").write_text(json.dumps({"type": "Error", "message": escape}))
    stream = io.StringIO()
    show(folder, console=Console(file=stream, width=200))
    for text in (stream.getvalue(), *(p.read_text() for p in write(folder) if p.suffix != ".html")):
        assert not set(text) & set("\x1b\x07\x9b\u202e")
    page = (folder / "report.html").read_text()
    assert "\x1b]0;" not in page
    cells = [cell for line in csv.reader((folder / "leaderboard.csv").open()) for cell in line]
    assert {f"'{formula}" for formula in formulas[:2]} <= set(cells)
    numbers = [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert all(float(cell) < 0 for cell in numbers), "only numbers begin with a sign"


def test_captions_of_a_foreign_folder_are_inert(tmp_path):
    folder = write_study(tmp_path / "scenes", ["single_task", "uniform"])
    hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[2J"
    for path in folder.rglob("examples.npz"):
        with np.load(path) as file:
            arrays = dict(file)
        for name in [name for name in arrays if "/" in name]:
            arrays[f"shown/{name}"] = np.array([hostile] * len(arrays[name]))
        np.savez(path, **arrays)
    stream = io.StringIO()
    show(folder, console=Console(file=stream, width=200))
    write(folder)
    page = (folder / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page, "captions are shown"
    assert "<script>alert(1)" not in page and "<img src=x" not in page
    assert "\x1b[2J" not in page and "\x1b[2J" not in stream.getvalue()
