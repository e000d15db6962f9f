"""The table of coverage names existing methods, gives reasons, knows the installed TorchJD, and is the page's."""

from __future__ import annotations

import torchjd.aggregation
import torchjd.scalarization

from benchmarks import coverage
from mtlbench import registry

BASES = {"Aggregator", "GramianWeightedAggregator", "Scalarizer", "WeightedAggregator", "Weighting"}
"""Classes of TorchJD that are no rules."""


def names(source: str) -> list[str]:
    return [entry["name"] for entry in coverage.entries() if entry["source"] == source]


def test_every_rule_of_the_installed_torchjd_has_a_line() -> None:
    found = {*torchjd.aggregation.__all__, *torchjd.scalarization.__all__} - BASES
    assert sorted({name.removesuffix("Weighting") for name in found}) == sorted(names("TorchJD"))


def test_a_line_names_shipped_methods_or_gives_a_reason() -> None:
    shipped = registry.shipped()
    for entry in coverage.entries():
        methods = coverage.methods_of(entry)
        assert [name for name in methods if name not in shipped] == [], entry
        assert methods or entry["note"].endswith("."), entry


def test_a_source_has_one_section_and_each_name_once() -> None:
    entries = [(entry["source"], entry["name"]) for entry in coverage.entries()]
    assert len(entries) == len(set(entries))
    assert coverage.page().count("\n## ") == len({source for source, _ in entries})


def test_the_page_is_current() -> None:
    assert coverage.PAGE.read_text(encoding="utf-8") == coverage.page(), "run: python benchmarks/coverage.py"
