"""The end of a bench in tools besides W&B: a run per row and seed and one for the study, once, and after trouble."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtlbench.report.dashboard.mirror import mirror_others
from mtlbench.tracking import others
from mtlbench.tracking.base import About, Ending, Sink
from tests.support.fake_study import write_study

LABELS = ["single_task", "uniform", "famo"]


class Recorder(Sink):
    """A tool that keeps what it is told, or fails at its first ending."""

    seen: list[tuple[About, Ending]]
    broken = False

    def __init__(self, about: About, folder: Path):
        self.about = about

    def log(self, step: int, values: Any) -> None:
        raise AssertionError("these runs have no steps")

    def finish(self, ending: Ending) -> None:
        if self.broken:
            raise OSError("disk full")
        self.seen.append((self.about, ending))

    def close(self, code: int) -> None:
        assert code == 0


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[About, Ending]]]:
    Recorder.seen, Recorder.broken = [], False
    monkeypatch.setitem(others.SINKS, "recorder", others.Tool(Recorder, "json", "none"))
    monkeypatch.setenv(others.VARIABLE, "recorder")
    yield Recorder.seen


def test_a_study_is_logged_once_with_its_tables_figures_and_page(
    tmp_path: Path, seen: list[tuple[About, Ending]]
) -> None:
    folder = write_study(tmp_path / "scenes", LABELS)
    (folder / "report.html").touch()
    assert mirror_others(folder, {}) == {"recorder": 10}
    kinds = [about.kind for about, _ in seen]
    assert kinds == ["row"] * 9 + ["summary"]
    assert {(about.label, about.config["seed"]) for about, _ in seen[:9]} == {(x, s) for x in LABELS for s in range(3)}
    assert all("row/delta_m" in ending.summary for _, ending in seen[:9])
    ending = seen[-1][1]
    assert "| famo |" in ending.tables["tables/leaderboard"].markdown()
    assert ending.figures and [path.name for path in ending.files["scenes-report"]] == ["report.html"]
    assert mirror_others(folder, {}) == {}, "nothing has changed"


def test_after_trouble_the_next_bench_logs_again(tmp_path: Path, seen: list[tuple[About, Ending]]) -> None:
    folder = write_study(tmp_path / "scenes", LABELS)
    Recorder.broken = True
    assert mirror_others(folder, {}) == {} and not seen
    Recorder.broken = False
    assert mirror_others(folder, {}) == {"recorder": 10}


def test_without_a_tool_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(others.VARIABLE, raising=False)
    assert mirror_others(tmp_path / "absent", {}) == {}
