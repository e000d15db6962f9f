"""A dashboard in plain words: sections of panels that name logged values. What draws it is an adapter's affair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Lines:
    """Values over steps, one line per row of the leaderboard with a band over its seeds; logarithmic on request."""

    title: str
    keys: tuple[str, ...]
    log: bool = False


@dataclass(frozen=True)
class Bars:
    """Final values: one bar per row, mean over seeds, with a line from the lowest to the highest seed."""

    title: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Scatter:
    """One final value against another, one point per run; cost axes are logarithmic."""

    title: str
    x: str
    y: str


@dataclass(frozen=True)
class Axis:
    """One axis of parallel coordinates: a final value or, with ``config``, an entry of the configuration."""

    key: str
    title: str
    inverted: bool = False
    config: bool = False


@dataclass(frozen=True)
class Parallel:
    """Final values of every run, one axis each; upwards is better."""

    title: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Importance:
    """How much every entry of the configuration decides a final value."""

    key: str


@dataclass(frozen=True)
class Media:
    """Pictures or figures, side by side over runs."""

    title: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class TablePanel:
    """A logged table."""

    key: str


@dataclass(frozen=True)
class Text:
    """Words, as Markdown."""

    markdown: str


Panel = Lines | Bars | Scatter | Parallel | Importance | Media | TablePanel | Text


@dataclass(frozen=True)
class Section:
    """Panels under a heading."""

    name: str
    panels: tuple[Panel, ...]
    open: bool = False


@dataclass(frozen=True)
class Dashboard:
    """The comparison of one study.

    Attributes:
        name: Shown above it.
        slug: Part of its address; saved again, it replaces the view with this slug.
        sections: Sections from top to bottom.
        runs: Ids of the runs that it shows.
        colours: Colour of every row, by label.
        columns: Final values that the table of runs shows, first ones first.
        order: Final value by which runs are sorted, the highest first.
    """

    name: str
    slug: str
    sections: tuple[Section, ...]
    runs: tuple[str, ...]
    colours: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    order: str = ""

    def keys(self) -> set[str]:
        """Return every logged value that a panel, a column or the order points to."""
        panels = (panel for section in self.sections for panel in section.panels)
        found = {key for panel in panels for key in keys_of(panel)}
        return {*found, *self.columns, *filter(None, [self.order])}


def keys_of(panel: Panel) -> Iterator[str]:
    """Yield the logged values that a panel points to."""
    match panel:
        case Lines() | Bars() | Media():
            yield from panel.keys
        case Scatter():
            yield from (panel.x, panel.y)
        case Parallel():
            yield from (axis.key for axis in panel.axes if not axis.config)
        case Importance() | TablePanel():
            yield panel.key
        case Text():
            pass
