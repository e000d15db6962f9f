"""`Table`: the rows of a CSV or Parquet file, with columns as features and as tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mtlbench.data import Sample, Samples
from mtlbench.errors import DataError, SuiteError
from mtlbench.tasks import Task
from mtlbench.tasks.inputs import VECTORS

from .tabular import columns
from .tabular.rows import Rows


class Table(Rows):
    """Rows of one file. An empty cell of a target is a missing label; that row trains the other tasks only.

    Features are standardised by the training rows. A missing number becomes the mean, and a further number marks it. A
    column of texts becomes one number per text.

    Args:
        root: Folder of the file, or the file.
        file: Name of the file within ``root``: ``.csv``, ``.csv.gz`` or ``.parquet``.
        targets: Task -> ``kind`` (``classification``, ``regression``, ``count``, ``multi_label``), ``column`` (default:
            the name of the task) or, for several labels, ``columns``; ``classes`` of a classification; ``mean``,
            ``std`` and ``unit`` of a regression.
        features: Feature columns; none for all that are not used otherwise.
        ignore: Columns that are not used.
        split: ``{column: name}`` of a column that holds train, val or test; or ``{val: share, test: share, seed: n}``.
        **common: See `MTLDataModule`.
    """

    VERSION: ClassVar[int] = 1
    INPUTS: ClassVar[str] = VECTORS

    def __init__(
        self,
        root: str | None = None,
        *,
        file: str = "",
        targets: Mapping[str, Any] | None = None,
        features: Sequence[str] = (),
        ignore: Sequence[str] = (),
        split: Mapping[str, Any] | None = None,
        tasks: Mapping[str, Task] | None = None,
        **common: Any,
    ):
        super().__init__(root, file=file, targets=targets, split=split, tasks=tasks, **common)
        self.features, self.ignore = list(features), list(ignore)

    def required(self) -> list[str]:
        """Returns the columns that the file must have."""
        return [*super().required(), *self.features, *self.ignore]

    def input_sizes(self) -> dict[str, int]:
        """Returns the length of a row as a vector."""
        return {"features": sum(column.width for column in self.columns)}

    def samples(self, split: str) -> Samples:
        """Returns the rows of a split."""
        return _Rows(split, self._rows[split], self._features, {n: self._labels[n] for n in self.tasks})

    def read(self, path: Path) -> Samples:
        """Returns the rows of another file with the same feature columns, for predictions."""
        frame = self.frame(path)
        self._check_known(frame, [column.name for column in self.columns], path)
        return _Rows(path.stem, np.arange(len(frame)), self._encoded(frame), {})

    @cached_property
    def columns(self) -> list[columns.Numbers | columns.Choices]:
        """How every feature column becomes numbers."""
        used = {column for target in self.targets.values() for column in target.columns}
        used |= {*self.ignore, self.split.get("column", "")}
        names = self.features or [name for name in self._frame.columns if name not in used]
        if both := sorted(set(names) & used):
            raise SuiteError(f"A column has one use. {', '.join(both)} is a feature and used otherwise too. Drop one.")
        if not names:
            raise DataError(f"A table needs feature columns. {self.path} has none besides targets. Name some.")
        training = np.zeros(len(self._frame), dtype=bool)
        training[self._rows["train"]] = True
        return columns.fit(self._frame, names, training)

    @cached_property
    def _features(self) -> torch.Tensor:
        return self._encoded(self._frame)

    def _encoded(self, frame: Any) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([column.encode(frame) for column in self.columns], 1))


class _Rows:
    """Rows of a table as samples."""

    def __init__(self, split: str, rows: np.ndarray, features: torch.Tensor, labels: Mapping[str, Any]):
        self.split, self.rows, self.features, self.labels = split, rows, features, labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = int(self.rows[index])
        targets = {name: values[row] for name, (values, known) in self.labels.items() if known[row]}
        return {"inputs": self.features[row], "targets": targets, "id": f"{self.split}-{row}"}
