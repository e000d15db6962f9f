"""Writes docs/coverage.md, what of other libraries and papers has a row here: ``python -m benchmarks.coverage``.

The table is benchmarks/coverage.tsv: where a name is from, the methods or suites that implement or use it, and a note,
which gives the reason if there are none. Tests compare it with the installed TorchJD and with what is shipped, and the
page with the table.
"""

from __future__ import annotations

import csv
from itertools import groupby
from pathlib import Path

from mtlbench import suite

TABLE = Path(__file__).with_name("coverage.tsv")
ROOT = Path(__file__).resolve().parents[1]
PAGE, SUITES = ROOT / "docs" / "coverage.md", ROOT / "experiments"
HEAD = """# Coverage

This page lists the rules, networks, systems and data sets of other libraries and papers, and the methods and suites
that implement or use them here, or the reason why none does. `python -m benchmarks.coverage` writes it from
`benchmarks/coverage.tsv`. A test compares the rules of TorchJD with the installed version, so a rule added in a new
release shows up as a missing row. The rules and architectures of LibMTL are those of its public repository.
"""


def entries() -> list[dict[str, str]]:
    """Returns the lines of the table: ``source``, ``name``, ``rows``, ``note``."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def names_of(entry: dict[str, str]) -> list[str]:
    """Returns the names of the methods or suites that implement or use an entry."""
    return [name.strip() for name in entry["rows"].split(",") if name.strip()]


def page() -> str:
    """Returns the page, one section per source."""
    sections = [HEAD]
    for source, group in groupby(entries(), key=lambda entry: entry["source"]):
        lines = [f"| {entry['name']} | {_named(entry)} | {entry['note']} |" for entry in group]
        sections.append(f"## {source}\n\n| name | here | note |\n|---|---|---|\n" + "\n".join(lines) + "\n")
    return "\n".join([*sections, _suites()])


def _suites() -> str:
    """Returns the section of the shipped suites."""
    lines = []
    for name in sorted(path.stem for path in SUITES.glob("*.yaml")):
        found = suite.load(name)
        lines.append(f"| `{name}` | {found.title} | {len(found.methods)} |")
    return "## Shipped suites\n\n| suite | content | rows |\n|---|---|---|\n" + "\n".join(lines) + "\n"


def _named(entry: dict[str, str]) -> str:
    return ", ".join(f"`{name}`" for name in names_of(entry)) or "none"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
