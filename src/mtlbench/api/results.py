"""The results of a study in Python: frames, figures, and text for papers. Reads files alone and needs no torch."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mtlbench import report
from mtlbench.errors import StoreError, coloured_output
from mtlbench.report.model import Leaderboard
from mtlbench.report.reader import read_plan
from mtlbench.study.record import states_of

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from mtlbench.report.figures.series import Series


def results(folder: str | Path, *, against: str = "") -> Results:
    """Reads the results of a suite.

    Args:
        folder: ``results/<suite>``.
        against: Row that the intervals of Δm refer to. Default: the baseline.

    Raises:
        StoreError: If the folder holds no study, the study is damaged, or ``against`` is not one of its rows.

    Example::

        found = mtlbench.results("results/digits")
        found.leaderboard()                        # one line per method
        found.frame.groupby(["label", "metric"]).value.mean()
    """
    return Results(Path(folder), against)


class Results:
    """The results of a study, as the files said when it was made.

    In a notebook it shows the leaderboard. All numbers are those of ``leaderboard.csv`` and of the page.

    Attributes:
        folder: ``results/<suite>``.
        board: The leaderboard or, where a study varies conditions, the table of methods by conditions.
    """

    def __init__(self, folder: Path, against: str = ""):
        self.folder = folder
        self._study, self.board = report.load(folder, states_of(folder, read_plan(folder)), against)

    def __repr__(self) -> str:
        lines = f"{len(self.board.rows)} methods, {len(self._study.results)} finished runs"
        without = f", {len(self.board.problems)} without a result" if self.board.problems else ""
        return f"<Results of {self.board.suite}: {lines}{without}>"

    def _repr_html_(self) -> str:
        """Returns the table for a notebook. Every name in it is escaped."""
        from mtlbench.api.html import table

        return table(self.board)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line per run, task and metric, with the costs of the run; see `mtlbench.api.frames.tidy`.

        Columns: ``run``, ``label``, ``method``, ``seed``, ``condition`` (where conditions vary), ``task``, ``metric``,
        ``protocol`` (metric and version), ``unit``, ``better`` (``higher`` or ``lower``), ``value``, and costs such as
        ``seconds_per_step``, ``parameters`` and ``flops`` with the names and units of ``leaderboard.csv``.
        """
        from mtlbench.api.frames import tidy

        return tidy(self._study, self.board)

    @property
    def problems(self) -> pd.DataFrame:
        """One line per run without a result: ``label``, ``seed``, ``run``, ``state``, ``reason``."""
        from mtlbench.api.frames import problems

        return problems(self.board)

    def leaderboard(self) -> pd.DataFrame:
        """Returns one line per method, best first, indexed by label.

        ``delta_m`` and ``score_<task>`` are means over seeds and have a column ``…_std`` with the standard deviation.
        ``difference_low`` and ``difference_high`` are the ends of the 95 % interval of the paired difference in Δm.
        Where a study varies conditions, each condition has a column with its mean, and ``…_low`` and ``…_high``.
        """
        from mtlbench.api.frames import leaderboard

        return leaderboard(self.board)

    def show(self) -> None:
        """Prints the leaderboard as ``mtlbench report`` does."""
        from rich.console import Console

        from mtlbench.report.views.terminal import show_board

        show_board(self.board, Console(file=coloured_output()))

    def to_markdown(self) -> str:
        """Returns the whole comparison as Markdown."""
        return report.text(self._study, self.board, "markdown")

    def to_latex(self) -> str:
        """Returns the leaderboard as a LaTeX table for the package booktabs."""
        return report.text(self._study, self.board, "latex")

    def to_json(self) -> str:
        """Returns everything that is known about the study as JSON, see `mtlbench.report.everything`."""
        return report.text(self._study, self.board, "json")

    def to_bibtex(self) -> str:
        """Returns the papers of the methods in the study as BibTeX."""
        return report.text(self._study, self.board, "bibtex")

    def plot_gains(self) -> go.Figure:
        """Plots the gain over the baseline per task, with 95 % intervals."""
        from mtlbench.report.figures.scores import gains

        return _drawn(gains(self._ranked("gains")), "gains, which need a finished baseline and another row")

    def plot_cost(self) -> go.Figure:
        """Plots Δm against seconds per step."""
        from mtlbench.report.figures.scores import cost

        return _drawn(cost(self._ranked("Δm")), "Δm and seconds per step of some row")

    def plot_losses(self) -> go.Figure:
        """Plots the training loss of every task over steps, one line per method."""
        return self._curves([(f"loss/{c.task}", c.task) for c in self._ranked("curves").primary], "training losses")

    def plot_scores(self) -> go.Figure:
        """Plots the score of every task over steps on the validation split, one line per method."""
        columns = [(f"val/{c.task}/{c.protocol}", f"{c.task}: {c.protocol}") for c in self._ranked("curves").primary]
        return self._curves(columns, "scores during training (trainer.evaluate_every)")

    def plot_cosines(self) -> go.Figure:
        """Plots the mean cosine between the gradients of two tasks, one matrix per method."""
        from mtlbench.report.figures.training import cosines

        board = self._ranked("cosines")
        drawn = cosines(board, self._series, [column.task for column in board.primary])
        return _drawn(drawn, "gradient cosines (trainer.diagnose_every)")

    def plot_conditions(self) -> go.Figure:
        """Plots the studied quantity over the conditions of a study, one line per method.

        Raises:
            StoreError: If the study varies no conditions.
        """
        from mtlbench.report.figures.training import conditions

        if isinstance(self.board, Leaderboard):
            raise StoreError(
                f"Conditions are those of a suite with a section 'scenario'. {self.board.suite} has none. Plot its "
                "gains: plot_gains()."
            )
        return _drawn(next(iter(conditions(self.board).values()), None), "values under some condition")

    @cached_property
    def _series(self) -> dict[str, dict[str, Series]]:
        from mtlbench.report.figures.series import read_series

        return read_series(self._study)

    def _curves(self, columns: list[tuple[str, str]], what: str) -> go.Figure:
        from mtlbench.report.figures.training import curves

        names, titles = zip(*columns, strict=True)
        return _drawn(curves(self._ranked("curves"), self._series, list(names), list(titles)), what)

    def _ranked(self, what: str) -> Leaderboard:
        if not isinstance(self.board, Leaderboard):
            raise StoreError(
                f"{what} are of a study that ranks methods. {self.board.suite} varies conditions. Plot these: "
                "plot_conditions()."
            )
        return self.board


def _drawn(figure: go.Figure | None, needed: str) -> go.Figure:
    if figure is None:
        raise StoreError(f"This figure needs {needed}. The study has none so far. Finish its runs, or plot another.")
    return figure
