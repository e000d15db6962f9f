"""Writes docs/coverage.md, what of other libraries and papers has a row here: ``python benchmarks/coverage.py``.

The table is benchmarks/coverage.tsv: where a name is from, the methods that stand for it, and a note, which gives the
reason if no method does. Tests compare it with the installed TorchJD and with the shipped methods, and the page with
the table.
"""

from __future__ import annotations

import csv
from itertools import groupby
from pathlib import Path

TABLE = Path(__file__).with_name("coverage.tsv")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "coverage.md"
HEAD = """# Coverage

This page lists the rules, networks and systems of other libraries and papers, and the methods that stand for them here.
`python benchmarks/coverage.py` writes it from `benchmarks/coverage.tsv`. Tests compare the rules of TorchJD with the
installed version, so that a rule of a new release shows as a missing row.
"""


def entries() -> list[dict[str, str]]:
    """Returns the lines of the table: ``source``, ``name``, ``rows``, ``note``."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def methods_of(entry: dict[str, str]) -> list[str]:
    """Returns the names of the methods that stand for an entry."""
    return [name.strip() for name in entry["rows"].split(",") if name.strip()]


def page() -> str:
    """Returns the page, one section per source."""
    sections = [HEAD]
    for source, group in groupby(entries(), key=lambda entry: entry["source"]):
        lines = [f"| {entry['name']} | {_named(entry)} | {entry['note']} |" for entry in group]
        sections.append(f"## {source}\n\n| name | methods here | note |\n|---|---|---|\n" + "\n".join(lines) + "\n")
    return "\n".join(sections)


def _named(entry: dict[str, str]) -> str:
    return ", ".join(f"`{name}`" for name in methods_of(entry)) or "none"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
