"""Plain records of equal tuning, a part of the leaderboard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TuningTrial:
    """One configuration that the search of a row tried.

    Attributes:
        number: Place in the search; 0 has the declared values.
        values: What it changed, by name.
        score: Mean relative gain over the reference on validation, in per cent; ``None`` if it failed.
        failed: Why it has no score.
        steps: Steps that it was trained for.
    """

    number: int
    values: dict[str, Any]
    score: float | None
    failed: str
    steps: int


@dataclass(frozen=True)
class Tuning:
    """The search of one row, which all of its seeds share.

    Attributes:
        label: Row.
        trials: All trials; with successive halving, those that were trained in full come last, once more.
        chosen: Number of the chosen trial.
        seconds: Training time of all finished trials, ``None`` if unknown.
    """

    label: str
    trials: tuple[TuningTrial, ...]
    chosen: int
    seconds: float | None

    @property
    def full(self) -> tuple[TuningTrial, ...]:
        """The trials that were trained for all steps; the choice is among them."""
        steps = max(trial.steps for trial in self.trials)
        return tuple(trial for trial in self.trials if trial.steps == steps)

    @property
    def best(self) -> TuningTrial | None:
        """The chosen trial."""
        return next((trial for trial in self.full if trial.number == self.chosen), None)

    @property
    def declared(self) -> TuningTrial | None:
        """The trial with the declared values."""
        return next((trial for trial in self.full if trial.number == 0), None)

    @property
    def tried(self) -> int:
        """Number of configurations."""
        return len({trial.number for trial in self.trials})

    @property
    def failures(self) -> int:
        """Number of configurations without a score."""
        return len({trial.number for trial in self.trials if trial.score is None})
