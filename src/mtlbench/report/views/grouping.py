"""Groups of tasks as grids of text: who found which at what cost, and how well predictions rank groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtlbench.report import formatting
from mtlbench.report.columns import Part
from mtlbench.report.model import FoundGroups, Grouping
from mtlbench.report.statistics import Estimate

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
    found = Section("Groups of tasks", groups_grid(groupings), (*_GROUP_NOTES, *_own_notes(groupings)))
    return found, Section("Predicted against measured quality of groups", quality_grid(groupings), _QUALITY_NOTES)


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


def groups_grid(groupings: Sequence[Grouping]) -> Grid:
    """Returns one line per row and seed."""
    lines = [(g.label, found) for g in groupings for found in g.found]
    every = [found for _, found in lines]
    return (
        Part.of("method", [label for label, _ in lines], "name"),
        Part.of("seed", [str(f.seed) for f in every], "name"),
        Part.of("networks", [networks(f) for f in every], "score", "in brackets: served by another network"),
        Part.of(
            "search", [formatting.duration(f.search_seconds) for f in every], "cost", "runs that only find the groups"
        ),
        Part.of("groups", [formatting.duration(f.group_seconds) for f in every], "cost", "all other runs of the row"),
        Part.of("total", [formatting.duration(f.total_seconds) for f in every], "cost"),
        Part.of("of all %", [_percent(f.share) for f in every], "cost", "total relative to a run per subset of tasks"),
    )


def quality_grid(groupings: Sequence[Grouping]) -> Grid:
    """Returns one line per row."""
    return (
        Part.of("method", [g.label for g in groupings], "name"),
        Part("ρ", tuple(_cell(g.correlation) for g in groupings), "score", "rank correlation"),
        Part.of("95 % interval", [formatting.interval(g.correlation) for g in groupings], "score"),
        Part.of("seeds", [str(g.correlation.n) if g.correlation else formatting.BLANK for g in groupings], "score"),
        Part.of("groups compared", [_counts(g) for g in groupings], "score", "per seed"),
        Part.of(
            "of all %", [_percent(g.share.mean if g.share else None) for g in groupings], "cost", "mean over seeds"
        ),
    )


def networks(found: FoundGroups) -> str:
    """Returns the tasks of every network."""
    lists = [
        [task if found.serves.get(task) == index else f"({task})" for task in group]
        for index, group in enumerate(found.groups)
    ]
    return "; ".join(" + ".join(tasks) for tasks in lists)


def _own_notes(groupings: Sequence[Grouping]) -> list[str]:
    return [f"{g.label}: {note}" for g in groupings for note in g.notes]


def _counts(grouping: Grouping) -> str:
    counts = sorted({len(found.qualities) for found in grouping.found})
    return f"{counts[0]}–{counts[-1]}" if len(counts) > 1 else str(counts[0])


def _cell(estimate: Estimate | None) -> formatting.Cell:
    if estimate is None:
        return formatting.Cell(formatting.BLANK)
    spread = "" if estimate.std is None else f"± {estimate.std:.2f}"
    return formatting.Cell(formatting.number(estimate.mean, 2, sign=True), spread)


def _percent(value: float | None) -> str:
    return formatting.BLANK if value is None else formatting.number(value, 1)
