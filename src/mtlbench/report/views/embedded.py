"""Figures and the library that draws them, compressed so that the page stays small and loads nothing."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import plotly.graph_objects as go


@dataclass(frozen=True)
class Drawing:
    """A figure in the page.

    Attributes:
        title: Heading.
        caption: How to read it.
        height: Pixels.
        width: Least width in pixels; a narrower window scrolls. 0 for figures that shrink with the window.
        data: JSON of the figure, see `packed`.
    """

    title: str
    caption: str
    height: int
    width: int
    data: str


def drawings(figures: Mapping[str, go.Figure]) -> list[Drawing]:
    """Returns figures by title as the page holds them."""
    return [_drawing(title, figure) for title, figure in figures.items()]


@cache
def library() -> str:
    """Returns plotly's script, see `packed`: 2 MB instead of 5."""
    from plotly.offline import get_plotlyjs

    return packed(get_plotlyjs())


def packed(text: str) -> str:
    """Returns a text as gzip in base64, which is inert in any HTML and which browsers unpack by themselves."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _drawing(title: str, figure: go.Figure) -> Drawing:
    about = figure.layout.meta or {}
    # Panels side by side need room, however narrow the window is.
    panels = len({tuple(axis.domain or ()) for axis in figure.select_xaxes()})
    width = max(230 * panels if panels > 1 else 0, about.get("width", 0))
    return Drawing(title, about.get("caption", ""), figure.layout.height or 420, width, packed(figure.to_json()))
