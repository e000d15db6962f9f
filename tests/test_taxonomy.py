"""Every registered method carries a leaf of the survey's taxonomy, and the page of methods shows exactly these."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mtlbench import registry

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
LEAVES = {
    "architecture": (
        "shared trunk", "cross-talk", "prediction distillation", "task routing", "single tasking", "learned",
    ),
    "optimisation": (
        "loss weighting", "regularisation", "task scheduling", "gradient modulation", "knowledge distillation",
        "multi-objective",
    ),
    "task-relationship": ("grouping", "transfer", "embeddings"),
}  # fmt: skip
"""The parts of Crawshaw (2020), arXiv:2009.09796, and their leaves."""
KEYS = [f"{part}/{leaf}" for part, leaves in LEAVES.items() for leaf in leaves]


def tags() -> dict[str, str]:
    """Returns the tag of every shipped method by name."""
    return {name: getattr(registry.find(name), "TAXONOMY", "") for name in registry.shipped()}


def rows() -> dict[str, str]:
    """Returns the last cell of every leaf's row on the page."""
    return dict(re.findall(r"^\| `([a-z-]+/[a-z -]+)` \|[^|]*\| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE))


def test_every_method_has_a_tag() -> None:
    assert {name: tag for name, tag in tags().items() if tag not in KEYS} == {}


def test_the_page_has_every_leaf_once() -> None:
    found = re.findall(r"^\| `([a-z-]+/[a-z -]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert found == KEYS


@pytest.mark.parametrize("key", KEYS)
def test_the_page_lists_the_methods_of_a_leaf(key: str) -> None:
    names = [name for name, tag in sorted(tags().items()) if tag == key]
    assert rows()[key] == (", ".join(f"`{name}`" for name in names) or "not covered")
