"""The report of a study, made from files alone: terminal table, Markdown, CSV, LaTeX, HTML. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mtlbench.report import conditions
from mtlbench.report.board import Leaderboard
from mtlbench.report.leaderboard import build
from mtlbench.report.read import Study, read_study

if TYPE_CHECKING:
    from rich.console import Console

    from mtlbench.report.tables import AnyBoard

__all__ = ["build", "load", "show", "write"]


def load(folder: Path, states: Mapping[str, str] | None = None) -> tuple[Study, AnyBoard]:
    """Reads a results folder and builds its leaderboard, or its table of methods by conditions.

    Args:
        folder: ``results/<suite>``.
        states: State per run id, see `build`.
    """
    study = read_study(folder)
    if "study" in study.plan:
        return study, conditions.build(study.plan, study.results, states, study.errors)
    return study, build(study.plan, study.results, states, study.errors)


def show(folder: Path, states: Mapping[str, str] | None = None, console: Console | None = None) -> None:
    """Prints the leaderboard of a results folder in the terminal."""
    from rich.console import Console

    from mtlbench.report.text import show_board

    show_board(load(folder, states)[1], console or Console())


def write(folder: Path, states: Mapping[str, str] | None = None) -> list[Path]:
    """Writes ``leaderboard.md``, ``.csv``, ``.tex`` and ``report.html`` into a results folder; returns their paths.

    Where methods have experts, ``experts.json`` tells which task uses which; where plans looked for groups of tasks,
    ``grouping.json`` holds groups, costs, predictions and affinities; where one shares computation, ``sharing.json``
    holds Δm, FLOPs and storage over thresholds.
    """
    from mtlbench.report import export, page
    from mtlbench.report.sharing import read_sharing, sharing_json
    from mtlbench.report.usage import read_usage, usage_json

    study, board = load(folder, states)
    files = {
        "leaderboard.md": export.markdown(board),
        "leaderboard.csv": export.tidy_csv(board),
        "leaderboard.tex": export.latex(board),
        "report.html": page.render(study, board),
    }
    if isinstance(board, Leaderboard) and board.groupings:
        files["grouping.json"] = export.groupings_json(board)
    if isinstance(board, Leaderboard) and (points := read_sharing(study, board)):
        files["sharing.json"] = sharing_json(points)
    if usages := read_usage(study):
        files["experts.json"] = usage_json(usages)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in files]
