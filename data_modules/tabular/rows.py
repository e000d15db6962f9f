"""`Rows`: the base of data modules whose samples are the rows of one file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mtlbench.data import MTLDataModule
from mtlbench.errors import DataError, SuiteError, unknown_name
from mtlbench.seeding import seed_of
from mtlbench.tasks import Task

from .targets import Target, read_targets

SHARES: Mapping[str, float] = {"val": 0.15, "test": 0.15}
"""Shares of rows that are drawn for the splits other than ``train``, if no column assigns rows to splits."""


class Rows(MTLDataModule):
    """Rows of one file: targets from its columns, and splits. A subclass says what the inputs are.

    Args:
        root: Folder of the file, or the file.
        file: Name of the file within ``root``.
        targets: Task -> ``kind`` and further keys; see `data_modules.tabular.targets.COLUMNS`.
        split: ``{column: name}`` of a column that holds train, val or test; or ``{val: share, test: share, seed: n}``.
        **common: See `MTLDataModule`.
    """

    TASKS: ClassVar[Mapping[str, Task]] = {}
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val", "test")

    def __init__(
        self,
        root: str | None = None,
        *,
        file: str = "",
        targets: Mapping[str, Any] | None = None,
        split: Mapping[str, Any] | None = None,
        tasks: Mapping[str, Task] | None = None,
        **common: Any,
    ):
        self.targets = self.targets_of(self.describing(targets))
        known = {name: target.task for name, target in self.targets.items()}
        super().__init__(root, tasks=known if tasks is None else tasks, **common)
        self.file = file
        self.split = self._checked_split(split)

    def describing(self, targets: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns the options that describe the targets. Default: ``targets``."""
        return {"targets": targets}

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
        """Returns a file as a data frame; by default the data file.

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

    def required(self) -> list[str]:
        """Returns the columns that the file must have."""
        used = [column for target in self.targets.values() for column in target.columns]
        return [*used, self.split["column"]] if "column" in self.split else used

    def sample_count(self, split: str) -> int | None:
        """Returns the number of rows of a split."""
        return len(self._rows[split])

    def doubts(self, split: str) -> list[str]:
        """Returns a line for each task without training labels, and for each regression that is far from its labels."""
        found = []
        for name in self.tasks if split == "train" else ():
            values, known = self._labels[name]
            labels = values[self._rows["train"]][known[self._rows["train"]]]
            if not len(labels):
                found.append(f"{name}: no training row has a label. Correct its column or the split, or leave it out.")
            elif self.tasks[name].kind == "regression":
                task: Any = self.targets[name].task
                mean, std = float(labels.mean()), float(labels.std())
                if abs(mean - task.mean) > 2 * task.std or not 0.2 < std / task.std < 5:
                    found.append(
                        f"{name}: networks predict (target - {task.mean:g}) / {task.std:g}, and training labels have "
                        f"mean {mean:.4g} and deviation {std:.4g}. Write these as `mean` and `std` of the target."
                    )
        return found

    @cached_property
    def _frame(self) -> Any:
        frame = self.frame()
        self._check_known(frame, self.required(), self.path)
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
    def _labels(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        found = {name: self.targets[name].encode(self._frame) for name in self.tasks}
        return {name: (values, torch.from_numpy(known)) for name, (values, known) in found.items()}

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
