"""The tables of task groups: what each plan found, its cost, and how well its predictions rank groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtlbench.report.columns import FOUND, QUALITY, Part, grid
from mtlbench.report.groups import Grouping

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
