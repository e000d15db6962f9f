"""``mtlbench compare``: methods over several studies."""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

from mtlbench.cli.output import may_be_cut
from mtlbench.errors import ExitCode, StoreError
from mtlbench.runs.store import write_text
from mtlbench.study.record import states_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the results folders and where to write."""
    parser.add_argument("folders", nargs="+", metavar="RESULTS", help="results folder of a suite, e.g. results/scenes")
    parser.add_argument(
        "--out", default="results/comparison", metavar="FOLDER", help="where to write (default: results/comparison)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints mean ranks over all studies, and writes them as CSV and as a page."""
    from mtlbench import report
    from mtlbench.report.model import Leaderboard
    from mtlbench.report.tables.across import compare_studies
    from mtlbench.report.views import across as views
    from mtlbench.report.views.files import csv_cell

    boards, names = [], []
    for folder in map(Path, arguments.folders):
        study, board = report.load(folder)
        board = report.load(folder, states_of(folder, study.plan))[1]
        if not isinstance(board, Leaderboard):
            raise StoreError(f"A comparison over studies ranks by Δm. {folder} varies conditions and has none.")
        boards.append(board)
        names.append(board.suite)
    repeated = {name for name in names if names.count(name) > 1}
    names = [str(f) if n in repeated else n for f, n in zip(arguments.folders, names, strict=True)]
    found = compare_studies(boards, names)
    out = Path(arguments.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{out} must be a folder that can be written. {error.strerror}. Name another with --out."
        ) from error
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(map(csv_cell, line) for line in views.lines(found))
    write_text(out / "comparison.csv", stream.getvalue())
    write_text(out / "comparison.html", views.page(found))
    with may_be_cut():
        views.show(found)
        print(f"Written: {out / 'comparison.csv'}, {out / 'comparison.html'}")
    return ExitCode.DONE
