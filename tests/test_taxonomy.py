"""Every shipped method carries a leaf of the survey's taxonomy, and the page of methods lists exactly these."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mtlbench import registry

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
ROW = re.compile(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \|$", re.MULTILINE)


def tags() -> dict[str, str]:
    """Returns the leaf of every shipped method by name."""
    return {name: getattr(registry.find(name), "TAXONOMY", "") for name in registry.shipped()}


def test_every_method_has_a_leaf() -> None:
    assert {name: tag for name, tag in tags().items() if tag not in registry.TAXONOMY} == {}


def test_a_method_states_its_leaf_itself() -> None:
    """A leaf that a base class hands down would hide that a new method has none."""
    assert [name for name in registry.shipped() if "TAXONOMY" not in vars(registry.find(name))] == []


def test_the_page_has_every_leaf_once_in_order() -> None:
    assert [leaf for leaf, _ in ROW.findall(PAGE.read_text())] == list(registry.TAXONOMY)


@pytest.mark.parametrize("leaf", registry.TAXONOMY)
def test_the_page_lists_the_methods_of_a_leaf(leaf: str) -> None:
    names = [name for name, tag in sorted(tags().items()) if tag == leaf]
    assert dict(ROW.findall(PAGE.read_text()))[leaf] == (", ".join(f"`{name}`" for name in names) or "not covered")
