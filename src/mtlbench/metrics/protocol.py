"""What a reported number means: name, version, direction, unit. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """What a reported number means.

    Attributes:
        id: Name and version, ``name@version``. Tables never mix different ids in one column.
        higher_is_better: Direction.
        unit: ``""`` for a share in [0, 1], else for example ``"deg"`` or ``"m"``.
    """

    id: str
    higher_is_better: bool
    unit: str = ""


def higher(*ids: str) -> tuple[Protocol, ...]:
    """Returns protocols of shares where more is better."""
    return tuple(Protocol(name, higher_is_better=True) for name in ids)


def lower(*ids: str, unit: str = "") -> tuple[Protocol, ...]:
    """Returns protocols of errors where less is better."""
    return tuple(Protocol(name, higher_is_better=False, unit=unit) for name in ids)
