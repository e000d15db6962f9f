"""Small real tables that packages ship: `Diabetes` of scikit-learn, `Yeast` and `SolarFlare` of river."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from mtlbench.errors import DataError
from mtlbench.tasks import Task

from .table import Table
from .tabular.targets import Target, read_targets


class _Shipped(Table):
    """A table with fixed columns.

    Args:
        root: Not used: the rows ship with a package.
        split: See `Table`.
        **common: See `MTLDataModule`.
    """

    TARGETS: ClassVar[Mapping[str, Mapping[str, Any]]]

    def __init__(
        self,
        root: str | None = None,
        *,
        split: Mapping[str, Any] | None = None,
        tasks: Mapping[str, Task] | None = None,
        **common: Any,
    ):
        super().__init__(root, split=split, tasks=tasks, **common)

    @classmethod
    def targets_of(cls, options: Mapping[str, Any]) -> dict[str, Target]:
        """Returns the targets of the set."""
        return read_targets(cls.TARGETS)

    def missing(self) -> list[str]:
        """Returns nothing: the rows ship with a package."""
        return []

    def fingerprint(self) -> str:
        """Returns a hash of all cells."""
        return hashlib.blake2b(self._frame.to_csv(index=False).encode(), digest_size=8).hexdigest()


class Diabetes(_Shipped):
    """442 patients (Efron et al. 2004): ten measurements at the start, and the disease a year later.

    Tasks: ``progression`` of the disease; and, from the other measurements, ``bmi``, blood pressure ``bp`` and ``sex``.

    Args:
        root: Not used: the rows ship with scikit-learn.
        **options: See `Table`.
    """

    TARGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "progression": {"kind": "regression", "column": "target", "mean": 152.0, "std": 77.0},
        "bmi": {"kind": "regression", "mean": 26.4, "std": 4.4},
        "bp": {"kind": "regression", "mean": 94.6, "std": 13.8},
        "sex": {"kind": "classification", "classes": [1, 2]},
    }
    TASKS: ClassVar[Mapping[str, Task]] = {name: target.task for name, target in read_targets(TARGETS).items()}

    def frame(self, path: Path | None = None) -> Any:
        """Returns the rows in their original units."""
        from sklearn.datasets import load_diabetes

        return super().frame(path) if path else load_diabetes(as_frame=True, scaled=False).frame


class _River(_Shipped):
    FILE: ClassVar[str]

    def missing(self) -> list[str]:
        """Returns a line if the package that ships the rows is not installed."""
        if importlib.util.find_spec("river"):
            return []
        return [f"{type(self).__name__} ships with the package river, which is not installed: pip install river."]

    def frame(self, path: Path | None = None) -> Any:
        """Returns the rows from the package's file, without importing the package."""
        if path is None:
            if absent := self.missing():
                raise DataError(absent[0])
            spec: Any = importlib.util.find_spec("river")
            path = Path(spec.submodule_search_locations[0]) / "datasets" / self.FILE
        return super().frame(path)


class Yeast(_River):
    """2417 genes of yeast with 103 features (Elisseeff and Weston 2001). Tasks: 14 functions that a gene has or lacks.

    Args:
        root: Not used: the rows ship with river.
        **options: See `Table`.
    """

    FILE: ClassVar[str] = "yeast.csv.gz"
    TARGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        f"function{i}": {"kind": "classification", "column": f"Class{i}", "classes": [0, 1]} for i in range(1, 15)
    }
    TASKS: ClassVar[Mapping[str, Task]] = {name: target.task for name, target in read_targets(TARGETS).items()}


class SolarFlare(_River):
    """1066 active regions of the sun with 10 features (UCI). Tasks: how many flares of class C, M and X follow.

    Args:
        root: Not used: the rows ship with river.
        **options: See `Table`.
    """

    FILE: ClassVar[str] = "solar-flare.csv.zip"
    TARGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {"kind": "count", "column": f"{name}-class-flares"} for name in ("c", "m", "x")
    }
    TASKS: ClassVar[Mapping[str, Task]] = {name: target.task for name, target in read_targets(TARGETS).items()}
