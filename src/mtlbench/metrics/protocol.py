"""Protocols: name, version, direction and unit of a reported number. Does not import torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """Definition of a reported number.

    Attributes:
        id: Name and version, ``name@version``. Tables never mix different ids in one column.
        higher_is_better: Direction.
        unit: ``""`` for a share in [0, 1], else for example ``"deg"`` or ``"m"``.
        best: The best value that can be reached, from which the closed share of the gap is counted. None: 1 if higher
            is better, else 0.
    """

    id: str
    higher_is_better: bool
    unit: str = ""
    best: float | None = None

    @property
    def attainable(self) -> float:
        """The best value that can be reached."""
        return float(self.higher_is_better) if self.best is None else self.best

    def identity(self) -> dict[str, Any]:
        """Returns what enters a run's identity; the best value is only read by reports."""
        return {key: value for key, value in asdict(self).items() if key != "best"}


def higher(*ids: str) -> tuple[Protocol, ...]:
    """Creates protocols of shares for which higher is better."""
    return tuple(Protocol(name, higher_is_better=True) for name in ids)


def lower(*ids: str, unit: str = "") -> tuple[Protocol, ...]:
    """Creates protocols of errors for which lower is better."""
    return tuple(Protocol(name, higher_is_better=False, unit=unit) for name in ids)
