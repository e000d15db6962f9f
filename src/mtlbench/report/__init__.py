"""Builds the report of a study from its files: terminal, Markdown, CSV, LaTeX, HTML. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mtlbench.errors import coloured_output, inert
from mtlbench.report.model import Leaderboard
from mtlbench.report.preregistration import named_pair, without_seeds_set_apart
from mtlbench.report.reader import ReportInput, read_input, read_specs
from mtlbench.report.tables import conditions
from mtlbench.report.tables.leaderboard import build
from mtlbench.runs.store import write_text
from mtlbench.study import costs

if TYPE_CHECKING:
    from rich.console import Console

    from mtlbench.report.views.tables import AnyBoard

__all__ = ["FORMATS", "build", "load", "page", "show", "text", "write"]

FORMATS = ("latex", "markdown", "json", "bibtex")
"""Formats of `text`."""


def load(folder: Path, states: Mapping[str, str] | None = None, against: str = "") -> tuple[ReportInput, AnyBoard]:
    """Reads a results folder and builds its leaderboard, or its table of methods by conditions.

    Args:
        folder: ``results/<suite>``.
        states: State per run id, see `build`.
        against: Row that the intervals of Δm refer to. Default: the baseline.
    """
    study = without_seeds_set_apart(read_input(folder))
    named, measured = named_pair(study), inert(costs.read(folder))
    if "scenario" in study.plan:
        return study, conditions.build(study.plan, study.results, states, study.errors, named, measured)
    specs = read_specs(study)
    found = {"named": named, "against": against, "measured": measured}
    return study, build(study.plan, study.results, states, study.errors, specs, **found)


def show(
    folder: Path, states: Mapping[str, str] | None = None, console: Console | None = None, against: str = ""
) -> None:
    """Prints the leaderboard of a results folder in the terminal; arguments as for `load`."""
    from rich.console import Console

    from mtlbench.report.views.terminal import show_board

    show_board(load(folder, states, against)[1], console or Console(file=coloured_output()))


def text(study: ReportInput, board: AnyBoard, form: str) -> str:
    """Returns a report in one format, for a paper or another program.

    Args:
        study: Input of the report.
        board: Its table; see `load`.
        form: ``"latex"``: the table for the package booktabs. ``"markdown"``: the whole comparison. ``"json"``:
            everything, see `mtlbench.report.everything`. ``"bibtex"``: the papers of the methods.

    Raises:
        KeyError: For another format.
    """
    from mtlbench.report import everything, references
    from mtlbench.report.views import files

    made: dict[str, Callable[[], str]] = {
        "latex": lambda: files.latex(board),
        "markdown": lambda: files.markdown(board),
        "json": lambda: everything.to_json(study, board),
        "bibtex": lambda: references.bibtex(study),
    }
    return made[form]()


def page(folder: Path, states: Mapping[str, str] | None = None, against: str = "") -> str:
    """Returns the HTML page of a results folder without writing it; arguments as for `load`."""
    from mtlbench.report.views import html

    return html.render(*load(folder, states, against))


def write(folder: Path, states: Mapping[str, str] | None = None, against: str = "") -> list[Path]:
    """Writes ``leaderboard.md``, ``.csv``, ``.tex`` and ``report.html`` into a results folder; returns their paths.

    If methods have experts, ``experts.json`` holds how often each task uses each expert. If plans searched for groups
    of tasks, ``grouping.json`` holds groups, costs, predictions and affinities. If a method shares computation,
    ``sharing.json`` holds Δm, FLOPs and storage over thresholds. If rows were tuned, ``tuning.json`` holds the
    trials.

    Raises:
        StoreError: If a file cannot be written, for example because the disk is full. Every file is replaced as a
            whole, so an earlier version stays intact.
    """
    from mtlbench.report.figures.experts import read_usage, usage_json
    from mtlbench.report.figures.sharing import read_sharing, sharing_json
    from mtlbench.report.views import files, html

    study, board = load(folder, states, against)
    texts = {
        "leaderboard.md": files.markdown(board),
        "leaderboard.csv": files.tidy_csv(board),
        "leaderboard.tex": files.latex(board),
        "report.html": html.render(study, board),
    }
    if isinstance(board, Leaderboard) and board.groupings:
        texts["grouping.json"] = files.groupings_json(board)
    if isinstance(board, Leaderboard) and board.tunings:
        texts["tuning.json"] = files.tunings_json(board)
    if isinstance(board, Leaderboard) and (points := read_sharing(study, board)):
        texts["sharing.json"] = sharing_json(points)
    if usages := read_usage(study):
        texts["experts.json"] = usage_json(usages)
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]
