"""Protocols: name, version, direction and unit of a reported number. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """Definition of a reported number.

    Attributes:
        id: Name and version, ``name@version``. Tables never mix different ids in one column.
        higher_is_better: Direction.
        unit: ``""`` for a share in [0, 1], else for example ``"deg"`` or ``"m"``.
    """

    id: str
    higher_is_better: bool
    unit: str = ""


def higher(*ids: str) -> tuple[Protocol, ...]:
    """Creates protocols of shares for which higher is better."""
    return tuple(Protocol(name, higher_is_better=True) for name in ids)


def lower(*ids: str, unit: str = "") -> tuple[Protocol, ...]:
    """Creates protocols of errors for which lower is better."""
    return tuple(Protocol(name, higher_is_better=False, unit=unit) for name in ids)
