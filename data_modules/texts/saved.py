"""Reads folders that `save_to_disk` of the library datasets wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlbench.errors import DataError, shortened, unknown_name


def read_saved(folder: Path, splits: Sequence[str], columns: Sequence[str]) -> Mapping[str, Any]:
    """Returns a data frame per split. Classes are texts, and a class below 0 is a missing label.

    Args:
        folder: The folder. If it holds a data set without splits, its only split is ``train``.
        splits: Names of the splits that are wanted.
        columns: Names of their columns that are wanted.

    Raises:
        DataError: The library is absent, the folder is damaged or another one, or it lacks a split or a column.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{folder} is read by the library datasets, which is not installed. Install it: pip install "
            '"mtlbench[text]"'
        ) from error
    try:
        saved = datasets.load_from_disk(str(folder))
        found = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    except Exception as error:  # Errors of files, of JSON and of Arrow.
        raise _damaged(folder, error) from error
    for split in splits:
        if split not in found:
            raise DataError(f"{folder}: {unknown_name('split', split, found)}")
    return {split: _frame(folder, found[split], columns) for split in splits}


def _frame(folder: Path, rows: Any, columns: Sequence[str]) -> Any:
    for column in columns:
        if column not in rows.column_names:
            raise DataError(f"{folder}: {unknown_name('column', column, rows.column_names)}")
        if not _plain(rows.features[column]):
            raise DataError(
                f"Columns of texts and labels hold a value, a list of values or an answer per row. {folder}: {column} "
                f"holds {rows.features[column]}. Choose another column."
            )
    chosen = rows.select_columns(list(dict.fromkeys(columns)))
    try:
        frame = chosen.to_pandas()
    except Exception as error:  # An Arrow file that ends early is noticed when it is read.
        raise _damaged(folder, error) from error
    for column, feature in chosen.features.items():
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if type(feature).__name__ != "Value":
            frame[column] = [_named(cell, names) for cell in frame[column]]
    return frame


def _plain(feature: Any) -> bool:
    """Returns whether a column holds values, lists of values, or mappings of either."""
    if isinstance(feature, Mapping):
        return all(map(_plain, feature.values()))
    return type(getattr(feature, "feature", feature)).__name__ in ("Value", "ClassLabel")


def _named(cell: Any, names: Sequence[str] | None) -> Any:
    """Returns a cell with the names of classes, and with lists in place of arrays."""
    if isinstance(cell, Mapping):
        return {key: _named(one, names) for key, one in cell.items()}
    if isinstance(cell, Iterable) and not isinstance(cell, str):
        return [_named(one, names) for one in cell]
    if names is None:
        return cell
    return names[int(cell)] if cell is not None and cell >= 0 else None


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(
        f"A saved data set is a folder that save_to_disk of the library datasets wrote. {folder}: "
        f"{type(error).__name__}: {shortened(str(error))}. Remove it, and fetch or save it again."
    )
