"""What a tool is told about a run, and what it has to do."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlbench.errors import MtlbenchError
from mtlbench.runs.spec import RunSpec

TRAINING, ROW, TRIAL, SUMMARY, EXTRACT = "training", "row", "trial", "summary", "extract"
"""Kinds of tracked runs: a training; a row of the leaderboard with one seed; a trial of a search; the study as a whole;
an extracted network."""


class TrackingError(MtlbenchError):
    """A tracking tool is unknown, or its package is missing."""


@dataclass(frozen=True)
class About:
    """What identifies a run in every tool.

    Attributes:
        id: Unique and stable, so that a resumed run continues.
        name: Shown to people.
        suite: Groups runs.
        kind: ``training``, ``row``, ``trial``, ``summary`` or ``extract``.
        label: Row of the leaderboard.
        config: What it was made with, as plain values.
    """

    id: str
    name: str
    suite: str
    kind: str
    label: str
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def training(cls, spec: RunSpec) -> About:
        """Return what identifies a training."""
        only = f" [{next(iter(spec.tasks))}]" if len(spec.tasks) == 1 else ""
        name = f"{spec.label}{only} s{spec.seed}"
        return cls(spec.run_id, name, spec.suite, TRAINING, spec.label, spec.identity())

    def settings(self) -> dict[str, Any]:
        """Return the configuration with what groups and filters need."""
        return {**self.config, "suite": self.suite, "kind": self.kind, "label": self.label}


@dataclass(frozen=True)
class Table:
    """A table: names of columns, and rows of plain values."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def markdown(self) -> str:
        """Return the table as Markdown, numbers with six figures, for tools that show no tables of their own."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(map(_shown, line))} |" for line in lines)


@dataclass(frozen=True)
class Picture:
    """An image with a caption: uint8, (H, W, 3)."""

    pixels: Any
    caption: str


@dataclass(frozen=True)
class Ending:
    """What a run leaves behind in addition to its rows.

    Attributes:
        summary: Scores and costs by name.
        tables: Tables by name.
        pictures: Lists of pictures by name.
        figures: Plotly figures by name.
        files: Files that are kept as one artifact, by the name of the artifact.
    """

    summary: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)


def _shown(value: Any) -> str:
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())


class Sink(ABC):
    """One run in one tool, from its start to its end."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step."""

    @abstractmethod
    def finish(self, ending: Ending) -> None:
        """Add what the run leaves behind, as far as the tool can show it."""

    @abstractmethod
    def close(self, code: int) -> None:
        """End the run; ``code`` is 0 for success."""


def require(what: str, module: str, extra: str) -> Any:
    """Return an optional module.

    Args:
        what: What needs it, in words.
        module: Its name.
        extra: Extra of mtlbench that installs it.

    Raises:
        TrackingError: If it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TrackingError(
            f"{what} needs the package {module.partition('.')[0]}, which is not installed ({error}). Install it: "
            f"pip install 'mtlbench[{extra}]'"
        ) from error
