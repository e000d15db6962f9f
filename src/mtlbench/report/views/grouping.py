"""The tables of task groups: what each plan found, its cost, and how well its predictions rank groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtlbench.report import formatting
from mtlbench.report.columns import METHOD, Part, TableColumn, grid
from mtlbench.report.groups import FoundGroups, Grouping

Grid = tuple[Part, ...]


@dataclass(frozen=True)
class Section:
    """A table with heading and notes.

    Attributes:
        title: Heading.
        grid: Table.
        notes: How to read it.
    """

    title: str
    grid: Grid
    notes: tuple[str, ...]


FOUND = (
    TableColumn(head="method", value=lambda line: line[0], group="name", text=True),
    TableColumn(head="seed", value=lambda line: line[1].seed, group="name"),
    TableColumn(
        head="networks",
        value=lambda line: networks(line[1]),
        text=True,
        tip="a task in parentheses is served by another network",
    ),
    TableColumn(
        head="search",
        value=lambda line: line[1].search_seconds,
        show=formatting.duration,
        group="cost",
        tip="training time of runs that only search for groups",
    ),
    TableColumn(
        head="groups",
        value=lambda line: line[1].group_seconds,
        show=formatting.duration,
        group="cost",
        tip="training time of all other runs of the row",
    ),
    TableColumn(head="total", value=lambda line: line[1].total_seconds, show=formatting.duration, group="cost"),
    TableColumn(
        head="of all %",
        value=lambda line: line[1].share,
        show=lambda v: formatting.number(v, 1),
        group="cost",
        tip="total as a share of training every subset of tasks",
    ),
)
"""Columns of the groups of tasks; a row is a label and one `FoundGroups`."""

QUALITY = (
    METHOD,
    TableColumn(head="ρ", value=lambda g: g.correlation, show=formatting.delta, tip="Spearman rank correlation"),
    TableColumn(head="95 % interval", value=lambda g: g.correlation, show=formatting.interval),
    TableColumn(head="seeds", value=lambda g: g.correlation.n if g.correlation else None),
    TableColumn(head="groups compared", value=lambda g: _counts(g.found), tip="per seed"),
    TableColumn(
        head="of all %",
        value=lambda g: g.share.mean if g.share else None,
        show=lambda v: formatting.number(v, 1),
        group="cost",
        tip="mean over seeds",
    ),
)
"""Columns of predicted against measured quality; a row is a `Grouping`."""


def group_sections(groupings: Sequence[Grouping]) -> tuple[Section, ...]:
    """Returns both tables about groups; none if there are no groupings."""
    if not groupings:
        return ()
    lines = [(g.label, found) for g in groupings for found in g.found]
    found = Section("Groups of tasks", grid(FOUND, lines), (*_GROUP_NOTES, *_own_notes(groupings)))
    return found, Section("Predicted against measured quality of groups", grid(QUALITY, groupings), _QUALITY_NOTES)


_GROUP_NOTES = (
    "Each network is listed with the tasks it trains on. A task in parentheses is served by another network.",
    "Search is the training time of the runs that only search for groups; groups is that of all other runs. A run that "
    "several rows share counts fully in each. Of all % is the total time relative to training one network for every "
    "subset of tasks, if the study contains all of these runs.",
)
_QUALITY_NOTES = (
    "ρ is Spearman's rank correlation (ties averaged) over all groups of two or more tasks that the study trained and "
    "the row predicted: mean over seeds and its 95 % t interval, which may exceed 1. Blank for fewer than 3 groups.",
    "Predicted quality is the mean over the group's tasks of the plan's prediction. Measured quality is the mean over "
    "its tasks of the relative gain over single-task training with the same seed, on the reported split.",
)


def _own_notes(groupings: Sequence[Grouping]) -> list[str]:
    return [f"{g.label}: {note}" for g in groupings for note in g.notes]


def networks(found: FoundGroups) -> str:
    """Lists the tasks of every network; parentheses mark tasks that another network serves."""
    lists = [
        [task if found.serves.get(task) == index else f"({task})" for task in group]
        for index, group in enumerate(found.groups)
    ]
    return "; ".join(" + ".join(tasks) for tasks in lists)


def _counts(every: Sequence[FoundGroups]) -> str:
    counts = sorted({len(found.qualities) for found in every})
    return f"{counts[0]}–{counts[-1]}" if len(counts) > 1 else str(counts[0])
