"""`Table`: the rows of a CSV or Parquet file, with columns as features and as tasks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mtlbench.data import MTLDataModule, Sample, Samples
from mtlbench.errors import DataError, SuiteError, unknown_name
from mtlbench.seeding import seed_of
from mtlbench.tasks import Task
from mtlbench.tasks.inputs import VECTORS

from .tabular import columns
from .tabular.targets import Target, read_targets

SHARES: Mapping[str, float] = {"val": 0.15, "test": 0.15}
"""Shares of rows that are drawn for the splits other than ``train``, if no column says which."""


class Table(MTLDataModule):
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
    TASKS: ClassVar[Mapping[str, Task]] = {}
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val", "test")
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
        self.targets = self.targets_of({"targets": targets})
        known = {name: target.task for name, target in self.targets.items()}
        super().__init__(root, tasks=known if tasks is None else tasks, **common)
        self.file, self.features, self.ignore = file, list(features), list(ignore)
        self.split = self._checked_split(split)

    @classmethod
    def targets_of(cls, options: Mapping[str, Any]) -> dict[str, Target]:
        """Returns the targets that options describe."""
        return read_targets(options.get("targets"))

    @classmethod
    def tasks_of(cls, options: Mapping[str, Any]) -> Mapping[str, Task]:
        """Returns the tasks that the options describe."""
        return {name: target.task for name, target in cls.targets_of(options).items()}

    @property
    def path(self) -> Path:
        """The file."""
        root = Path(self.root or ".").expanduser()
        return root / self.file if self.file else root

    def missing(self) -> list[str]:
        """Returns a line if there is no file."""
        if os.path.isfile(self.path):
            return []
        return [f"A table is a file. There is no file {self.path}. Set data.options.file, and DATA= to its folder."]

    def fingerprint(self) -> str:
        """Returns a hash of the content of the file."""
        return hashlib.blake2b(self.path.read_bytes(), digest_size=8).hexdigest()

    def frame(self, path: Path | None = None) -> Any:
        """Returns a file as a data frame; by default that of the data.

        Raises:
            DataError: It cannot be read as its ending says.
        """
        import pandas as pd

        path = path or self.path
        try:
            return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        except ImportError as error:
            raise DataError(f"Parquet files need pyarrow. {path} is one. Install it: pip install pyarrow.") from error
        except Exception as error:  # Parsers raise their own errors, and those of decoders.
            raise DataError(
                f"A table must be readable as CSV or Parquet. {path}: {type(error).__name__}: {error}. Correct it."
            ) from error

    def input_sizes(self) -> dict[str, int]:
        """Returns the length of a row as a vector."""
        return {"features": sum(column.width for column in self.columns)}

    def sample_count(self, split: str) -> int | None:
        """Returns the number of rows of a split."""
        return len(self._rows[split])

    def samples(self, split: str) -> Samples:
        """Returns the rows of a split."""
        return _Rows(split, self._rows[split], self._features, {n: self._labels[n] for n in self.tasks})

    def read(self, path: Path) -> Samples:
        """Returns the rows of another file with the same feature columns, for predictions."""
        frame = self.frame(path)
        self._check_known(frame, [column.name for column in self.columns], path)
        return _Rows(path.stem, np.arange(len(frame)), self._encoded(frame), {})

    def doubts(self, split: str) -> list[str]:
        """Returns a line for each regression whose training labels are far from standard as the task states them."""
        found = []
        for name, target in self.targets.items() if split == "train" else ():
            if target.task.kind == "regression" and name in self.tasks:
                values, known = self._labels[name]
                rows = values[self._rows["train"]][known[self._rows["train"]]]
                task: Any = target.task
                mean, std = float(rows.mean()), float(rows.std())
                if abs(mean - task.mean) > 2 * task.std or not 0.2 < std / task.std < 5:
                    found.append(
                        f"{name}: networks predict (target - {task.mean:g}) / {task.std:g}, and training labels have "
                        f"mean {mean:.4g} and deviation {std:.4g}. Write these as `mean` and `std` of the target."
                    )
        return found

    # ---- the parts of the table, read once --------------------------------------------------------------------------

    @cached_property
    def _frame(self) -> Any:
        frame = self.frame()
        used = [column for target in self.targets.values() for column in target.columns]
        by = [self.split["column"]] if "column" in self.split else []
        self._check_known(frame, [*used, *self.features, *self.ignore, *by], self.path)
        return frame

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        count = len(self._frame)
        if "column" in self.split:
            texts = self._frame[self.split["column"]].astype(str).to_numpy()
            if odd := sorted(set(texts) - set(self.SPLITS)):
                raise DataError(
                    f"The column {self.split['column']} says train, val or test for every row. Found {odd[0]!r}. "
                    "Correct these cells."
                )
            return {split: np.flatnonzero(texts == split) for split in self.SPLITS}
        order = np.random.default_rng(seed_of("table", self.split["seed"])).permutation(count)
        sizes = {split: round(self.split[split] * count) for split in ("val", "test")}
        val, test, train = np.split(order, np.cumsum(list(sizes.values())))
        return {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}

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

    @cached_property
    def _labels(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        found = {name: self.targets[name].encode(self._frame) for name in self.tasks}
        return {name: (values, torch.from_numpy(known)) for name, (values, known) in found.items()}

    def _encoded(self, frame: Any) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([column.encode(frame) for column in self.columns], 1))

    def _checked_split(self, split: Mapping[str, Any] | None) -> dict[str, Any]:
        given = dict(split or {})
        if "column" in given and len(given) == 1:
            return {"column": str(given["column"])}
        found = {**SHARES, "seed": 0, **given}
        shares = [found["val"], found["test"]]
        if set(found) != {"val", "test", "seed"} or not all(isinstance(s, int | float) and 0 < s < 1 for s in shares):
            raise SuiteError(
                "data.options.split is {column: name}, or {val: share, test: share, seed: n} with shares between 0 and "
                f"1. Found {given}."
            )
        if sum(shares) >= 1:
            raise SuiteError(f"val and test leave rows for training, so their sum is below 1. Found {sum(shares):g}.")
        return found

    @staticmethod
    def _check_known(frame: Any, names: Sequence[str], path: Path) -> None:
        for name in names:
            if name not in frame.columns:
                raise DataError(f"{path}: " + unknown_name("column", name, [str(column) for column in frame.columns]))


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
