"""The table of coverage names existing methods, gives reasons, knows the installed TorchJD, and is the page's."""

from __future__ import annotations

import torchjd.aggregation
import torchjd.scalarization

from benchmarks import coverage
from mtlbench import registry
from mtlbench.report import references

BASES = {"Aggregator", "GramianWeightedAggregator", "Scalarizer", "WeightedAggregator", "Weighting"}
"""Classes of TorchJD that are no rules."""


def names(source: str) -> list[str]:
    return [entry["name"] for entry in coverage.entries() if entry["source"] == source]


def test_every_rule_of_the_installed_torchjd_has_a_line() -> None:
    found = {*torchjd.aggregation.__all__, *torchjd.scalarization.__all__} - BASES
    assert sorted({name.removesuffix("Weighting") for name in found}) == sorted(names("TorchJD"))


def test_a_line_names_what_is_shipped_or_gives_a_reason() -> None:
    methods, suites = registry.shipped(), [path.stem for path in coverage.SUITES.glob("*.yaml")]
    for entry in coverage.entries():
        known = suites if entry["source"] == "Data sets" else methods
        assert [name for name in coverage.names_of(entry) if name not in known] == [], entry
        assert coverage.names_of(entry) or entry["note"].endswith("."), entry


def test_every_method_from_a_paper_stands_for_something() -> None:
    named = {name for entry in coverage.entries() for name in coverage.names_of(entry)}
    assert sorted(name for name in registry.shipped() if references.papers(name) and name not in named) == []


def test_a_source_has_one_section_and_each_name_once() -> None:
    entries = [(entry["source"], entry["name"]) for entry in coverage.entries()]
    assert len(entries) == len(set(entries))
    assert coverage.page().count("\n## ") == len({source for source, _ in entries}) + 1, "and that of shipped suites"


def test_the_page_is_current() -> None:
    assert coverage.PAGE.read_text(encoding="utf-8") == coverage.page(), "run: python -m benchmarks.coverage"
