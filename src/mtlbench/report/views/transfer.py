"""The tables of transfer: scores after every combination of groups, and how they depend on the source tasks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mtlbench.report import formatting
from mtlbench.report.columns import METHOD, TableColumn, grid
from mtlbench.report.statistics import Estimate
from mtlbench.report.transfer import Combination, Transfer
from mtlbench.report.views.grouping import Section

NAMES = (
    METHOD,
    TableColumn(head="source groups", value=lambda c: c.groups, group="name", text=True),
    TableColumn(head="tasks", value=lambda c: c.tasks, group="name", tip="number of source tasks"),
)
GAIN = TableColumn(
    head="gain % ↑",
    value=lambda c: c.gain,
    show=formatting.delta,
    group="delta",
    tip="mean relative gain of the targets over no source tasks",
)
"""Columns of the scores before and after those of the targets; a row is a `Combination`."""

TRENDS = (
    METHOD,
    TableColumn(head="target", value=lambda t: t.target or "mean of all", group="name", text=True),
    TableColumn(head="slope % per task", value=lambda t: t.slope, show=formatting.delta, tip="over all combinations"),
    TableColumn(head="95 % interval", value=lambda t: t.slope, show=formatting.interval),
    TableColumn(
        head="all − own %",
        value=lambda t: t.gap.estimate if t.gap else None,
        show=formatting.delta,
        tip="gain after all groups minus gain after the target's own group",
    ),
    TableColumn(head="95 % interval", value=lambda t: t.gap.estimate if t.gap else None, show=formatting.interval),
    TableColumn(head="p", value=lambda t: t.gap.p if t.gap else None, show=formatting.probability, tip="paired t test"),
)
"""Columns of the statistics; a row is a `Trend`."""

_SCORES = (
    "Scores are means over seeds ± standard deviation. Gain: the mean over targets of the relative gain over the same "
    "runs without source tasks, paired by seed and relative to the mean of these.",
)
_TRENDS = (
    "Slope: of the least-squares line of a seed's gain against the number of source tasks, over all combinations.",
    "All − own: the gain after all groups minus the gain after the group that lists the target; blank for a target "
    "that no group lists. p-values are of paired t tests and are not corrected.",
)


def transfer_sections(transfer: Transfer | None) -> tuple[Section, ...]:
    """Returns both tables; none if the scenario is another one."""
    if transfer is None:
        return ()
    lines = transfer.combinations
    scores = [
        TableColumn(head=head, value=partial(_score, task), show=partial(formatting.mean, digits=_digits(lines, task)))
        for task, head in transfer.targets.items()
    ]
    return (
        Section("Transfer from groups of source tasks", grid((*NAMES, *scores, GAIN), lines), _SCORES),
        Section("Transfer against the number of source tasks", grid(TRENDS, transfer.trends), _TRENDS),
    )


def _score(task: str, line: Combination) -> Estimate | None:
    return line.scores.get(task)


def _digits(lines: Sequence[Combination], task: str) -> int:
    return formatting.decimals(line.scores[task].mean for line in lines if task in line.scores)
