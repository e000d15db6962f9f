"""Target columns of a table as tasks: what a suite says about each, and how cells become targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlbench.errors import DataError, SuiteError, unknown_name
from mtlbench.tasks import (
    Classification,
    Count,
    MultiLabel,
    Regression,
    ScoredClassification,
    ScoredRegression,
    SemanticSegmentation,
    Task,
)

from .columns import text_of


@dataclass(frozen=True)
class NamedClasses(Classification):
    """`Classification` whose classes are texts of a column.

    Attributes:
        class_names: Texts of the classes, in order.
    """

    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """One task of a table.

    Attributes:
        task: What is predicted.
        columns: Columns of its cells; several for `MultiLabel`, none for masks.
        classes: Texts of the classes, in order.
        folder: Folder of the masks.
    """

    task: Task
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    folder: str = ""

    def encode(self, frame: Any) -> tuple[Tensor, np.ndarray]:
        """Returns the targets of all rows, and (N,) bool whether a row has any label.

        Raises:
            DataError: A cell does not hold what the kind needs.
        """
        cells = frame[list(self.columns)]
        missing = cells.isna().to_numpy()
        if self.classes:
            return self._classes(cells[self.columns[0]], missing[:, 0])
        values = np.stack([self._numbers(column, cells[column]) for column in self.columns], 1).astype(np.float32)
        targets = torch.from_numpy(values if isinstance(self.task, MultiLabel) else values[:, 0])
        if fault := self.task.fault(targets):
            raise DataError(f"{self.task.name}: {fault}. Correct the column {', '.join(self.columns)}.")
        return targets, ~missing.all(1)

    def _classes(self, cells: Any, missing: np.ndarray) -> tuple[Tensor, np.ndarray]:
        places = {text: place for place, text in enumerate(self.classes)}
        texts = [text_of(cell) for cell in cells]
        unknown = sorted({text for text, gone in zip(texts, missing, strict=True) if not gone and text not in places})
        if unknown:
            raise DataError(
                f"{self.task.name}: every cell of {self.columns[0]} is one of its classes "
                f"{', '.join(self.classes)}, or empty. Found {', '.join(unknown[:3])}. Add it to `classes`."
            )
        return torch.tensor([places.get(text, -1) for text in texts]), ~missing

    def _numbers(self, name: str, column: Any) -> np.ndarray:
        try:
            return column.to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{self.task.name}: the column {name} holds numbers or empty cells. {error}. Correct the cell, or "
                "choose the kind classification."
            ) from error


@dataclass(frozen=True)
class Kind:
    """A kind of targets.

    Attributes:
        keys: Its keys besides ``kind``.
        build: Returns the target of a name and its keys.
    """

    keys: tuple[str, ...]
    build: Callable[[str, Mapping[str, Any]], Target]


def read_targets(targets: Any, kinds: Mapping[str, Kind] | None = None) -> dict[str, Target]:
    """Returns the targets that a suite describes.

    Args:
        targets: Task -> ``kind`` and further keys.
        kinds: Kinds that are possible; by default `COLUMNS`.

    Raises:
        SuiteError: A description has another form.
    """
    if not isinstance(targets, Mapping) or not targets:
        raise SuiteError(
            "data.options.targets maps each task to its kind and column, for example "
            f"{{price: {{kind: regression}}}}. Found {targets!r}."
        )
    return {str(name): _read(str(name), about, kinds or COLUMNS) for name, about in targets.items()}


def _read(name: str, about: Any, kinds: Mapping[str, Kind]) -> Target:
    if not isinstance(about, Mapping) or "kind" not in about:
        raise SuiteError(f"Target {name} needs a kind: {', '.join(kinds)}. Found {about!r}.")
    kind, given = about["kind"], {key: value for key, value in about.items() if key != "kind"}
    if kind not in kinds:
        raise SuiteError(f"Target {name}: " + unknown_name("kind of a target", str(kind), kinds))
    keys = kinds[kind].keys
    for key in given:
        if key not in keys:
            raise SuiteError(f"Target {name}: " + unknown_name(f"key of a target of kind {kind}", str(key), keys))
    return kinds[kind].build(name, given)


def class_texts(name: str, given: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the texts of the key ``classes``.

    Raises:
        SuiteError: It does not list two or more different ones.
    """
    classes = given.get("classes")
    if not isinstance(classes, list | tuple) or len({text_of(c) for c in classes}) < max(2, len(classes)):
        raise SuiteError(
            f"Target {name}: `classes` lists two or more texts of the column, once each. Found {classes!r}."
        )
    return tuple(text_of(value) for value in classes)


def _classification(name: str, given: Mapping[str, Any]) -> Target:
    texts = class_texts(name, given)
    score = _score(name, given, "accuracy", ScoredClassification.SCORES)
    task: Classification = NamedClasses(name, classes=len(texts), class_names=texts)
    if score != "accuracy":
        if score == "f1" and len(texts) != 2:
            raise SuiteError(f"Target {name}: f1 is a score of two classes. Found {len(texts)}. Choose macro_f1.")
        task = ScoredClassification(name, classes=len(texts), class_names=texts, score=score)
    return Target(task, (str(given.get("column", name)),), texts)


def _regression(name: str, given: Mapping[str, Any]) -> Target:
    numbers = {key: given[key] for key in ("mean", "std") if key in given}
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or (key == "std" and not value > 0):
            raise SuiteError(f"Target {name}: {key} is a number{' above 0' if key == 'std' else ''}. Found {value!r}.")
    mean, std = float(numbers.get("mean", 0)), float(numbers.get("std", 1))
    about: dict[str, Any] = {"unit": str(given.get("unit", "")), "mean": mean, "std": std}
    score = _score(name, given, "rmse", ScoredRegression.SCORES)
    task = Regression(name, **about) if score == "rmse" else ScoredRegression(name, **about, score=score)
    return Target(task, (str(given.get("column", name)),))


def _score(name: str, given: Mapping[str, Any], usual: str, others: Sequence[str]) -> str:
    score = given.get("score", usual)
    if score not in (usual, *others):
        raise SuiteError(f"Target {name}: " + unknown_name("score", str(score), (usual, *others)))
    return str(score)


def _count(name: str, given: Mapping[str, Any]) -> Target:
    return Target(Count(name), (str(given.get("column", name)),))


def _multi_label(name: str, given: Mapping[str, Any]) -> Target:
    columns = given.get("columns")
    if not isinstance(columns, list | tuple) or not columns:
        raise SuiteError(f"Target {name}: `columns` lists the columns of its labels. Found {columns!r}.")
    names = tuple(str(column) for column in columns)
    return Target(MultiLabel(name, labels=names), names)


def _segmentation(name: str, given: Mapping[str, Any]) -> Target:
    classes = given.get("classes")
    if not isinstance(classes, list | tuple) or len(classes) < 2 or not given.get("folder"):
        raise SuiteError(
            f"Target {name}: a segmentation has the `folder` of its masks, and `classes` that list two or more names. "
            f"Found {dict(given)}."
        )
    names = tuple(str(value) for value in classes)
    task = SemanticSegmentation(name, classes=len(names), class_names=names, protocol=f"{name}_miou@1")
    return Target(task, folder=str(given["folder"]))


COLUMNS: Mapping[str, Kind] = {
    "classification": Kind(("column", "classes", "score"), _classification),
    "regression": Kind(("column", "mean", "std", "unit", "score"), _regression),
    "count": Kind(("column",), _count),
    "multi_label": Kind(("columns",), _multi_label),
}
"""Targets in columns of a table."""

MASKS: Mapping[str, Kind] = {"segmentation": Kind(("folder", "classes"), _segmentation)}
"""Targets that images have besides."""
