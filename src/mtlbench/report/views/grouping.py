"""Groups of tasks as grids of text: who found which at what cost, and how well predictions rank groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtlbench.report.columns import FOUND, QUALITY, Part, grid
from mtlbench.report.model import Grouping

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
    """Returns both tables; none without groupings."""
    if not groupings:
        return ()
    lines = [(g.label, found) for g in groupings for found in g.found]
    found = Section("Groups of tasks", grid(FOUND, lines), (*_GROUP_NOTES, *_own_notes(groupings)))
    return found, Section("Predicted against measured quality of groups", grid(QUALITY, groupings), _QUALITY_NOTES)


_GROUP_NOTES = (
    "Networks: the tasks that each trains on; a task in brackets is served by another network.",
    "Search: training time of the runs that only served to find the groups. Groups: of the other runs. A run that "
    "several rows share counts fully in each. Of all: total time in per cent of a run per subset of all tasks, where "
    "the study holds them all.",
)
_QUALITY_NOTES = (
    "ρ: Spearman's rank correlation, ties averaged, over all groups of two and more tasks that the study trained and "
    "the row predicted; mean over seeds with its 95 % t interval, which may pass 1. Blank for fewer than three groups.",
    "Predicted: mean over the group's tasks, from what the plan saw. Measured: mean over its tasks of the relative "
    "gain over single-task training with the same seed, on the reported split.",
)


def _own_notes(groupings: Sequence[Grouping]) -> list[str]:
    return [f"{g.label}: {note}" for g in groupings for note in g.notes]
