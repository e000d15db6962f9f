"""Reads files of texts, and says in one line what is wrong with a faulty one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtlbench.errors import DataError

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")


def read_frame(path: Path) -> Any:
    """Returns a file as a data frame; its suffix names the format.

    Raises:
        DataError: The ending is unknown, the file is not in UTF-8, or it cannot be read as its ending says.
    """
    import pandas as pd

    if path.suffix not in ENDINGS:
        raise DataError(
            f"A file of texts ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}. Found {path}. Convert it, or give it "
            "the ending of what it is."
        )
    if path.suffix != ".parquet":
        text_of(path)
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix == ".jsonl":
            return pd.read_json(path, lines=True, dtype=False, convert_dates=False)
        # Only empty cells are missing: NA, null and None may be whole texts.
        form: dict[str, Any] = {"encoding": "utf-8-sig", "keep_default_na": False, "na_values": [""]}
        return pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", **form)
    except ImportError as error:
        raise DataError(f"Parquet files need pyarrow. {path} is one. Install it: pip install pyarrow.") from error
    except Exception as error:  # Parsers raise their own errors.
        raise DataError(
            f"A file of texts is readable as its ending says. {path}: {type(error).__name__}: {error}. Correct it."
        ) from error


def text_of(path: Path) -> str:
    """Returns the content of a file in UTF-8.

    Raises:
        DataError: It is in another encoding, or in several, or cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"A file of texts must be readable. {path}: {error}. Correct the path or its rights."
        ) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # With a byte-order mark, positions count from behind it.
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"A file of texts is in UTF-8 throughout. {path}: line {line} holds the byte 0x{raw[error.start]:02x}, as "
            "in a file of another encoding, or of several. Save it as UTF-8."
        ) from error


def lines_of(path: Path) -> list[str]:
    """Returns the lines of a file, one text each.

    Raises:
        DataError: There are none, or one is empty.
    """
    lines = text_of(path).splitlines()
    empty = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
    if not lines or empty is not None:
        fact = f"line {empty} is empty" if lines else "it has no lines"
        raise DataError(f"Every line of a file of texts is a text. {path}: {fact}. Remove empty lines.")
    return lines
