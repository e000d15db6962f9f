"""Feature columns of a table as numbers: standardised numbers, and one number per choice of text columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtlbench.errors import DataError

MOST_CHOICES = 100
"""Most different texts of a feature column. A column of names or dates has more, and teaches a network nothing."""


def text_of(value: Any) -> str:
    """Returns a cell as text; whole numbers have no decimals, because missing cells turn a column into floats."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


@dataclass(frozen=True)
class Numbers:
    """A column of numbers, standardised by mean and deviation of the training rows.

    Attributes:
        name: Name of the column.
        mean, std: Of the training rows; std is 1 for a constant column.
        flagged: Whether a second number says which cells are missing, as some training cells are.
    """

    name: str
    mean: float
    std: float
    flagged: bool

    @property
    def width(self) -> int:
        """Numbers per row."""
        return 1 + self.flagged

    def encode(self, frame: Any) -> np.ndarray:
        """Returns (N, width) float32; missing cells take the mean.

        Raises:
            DataError: A cell is not a finite number.
        """
        values = _numbers(self.name, frame[self.name])
        missing = np.isnan(values)
        scaled = np.where(missing, 0.0, (values - self.mean) / self.std)
        return np.stack([scaled, missing] if self.flagged else [scaled], 1).astype(np.float32)


@dataclass(frozen=True)
class Choices:
    """A column of texts: one number per text of the training rows, 1 where the row has it.

    Attributes:
        name: Name of the column.
        values: Texts of the training rows, in order.
    """

    name: str
    values: tuple[str, ...]

    @property
    def width(self) -> int:
        """Numbers per row."""
        return len(self.values)

    def encode(self, frame: Any) -> np.ndarray:
        """Returns (N, width) float32. Missing cells and texts that no training row has give zeros."""
        texts = np.array([text_of(value) for value in frame[self.name]], dtype=object)
        return (texts[:, None] == np.array(self.values, dtype=object)).astype(np.float32)


def fit(frame: Any, names: Sequence[str], training: np.ndarray) -> list[Numbers | Choices]:
    """Returns the encoding of each feature column.

    Args:
        frame: The table.
        names: Feature columns.
        training: (N,) bool, rows of the training split.

    Raises:
        DataError: A column is empty, holds infinity, or has too many different texts.
    """
    return [_fit(frame, name, training) for name in names]


def _fit(frame: Any, name: str, training: np.ndarray) -> Numbers | Choices:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    column = frame[name]
    known = column[training].dropna()
    if not len(known):
        raise DataError(f"A feature column needs values. {name} has none in the training rows. Put it under `ignore`.")
    if is_numeric_dtype(column) and not is_bool_dtype(column):
        values = _numbers(name, known)
        return Numbers(name, float(values.mean()), float(values.std()) or 1.0, bool(column[training].isna().any()))
    found = sorted({text_of(value) for value in known})
    if len(found) > MOST_CHOICES:
        raise DataError(
            f"A feature column of texts has at most {MOST_CHOICES} different ones. {name} has {len(found)}, such as "
            f"{found[0]!r} and {found[1]!r}. Correct the texts if they should be numbers, or put it under `ignore`."
        )
    return Choices(name, tuple(found))


def _numbers(name: str, column: Any) -> np.ndarray:
    try:
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(f"The column {name} held numbers in training, and must hold numbers. {error}.") from error
    if np.isinf(values).any():
        raise DataError(f"Numbers of a feature column are finite. {name} holds infinity. Leave these cells empty.")
    return values
