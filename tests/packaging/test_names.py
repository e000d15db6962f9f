"""Public names, found on first use, and the same for editors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mtlbench


@pytest.mark.parametrize("name", mtlbench.__all__)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(mtlbench, name)
    # `bench` is the package of that name, which can be called.
    assert callable(found) and found.__name__ == ("mtlbench.bench" if name == "bench" else name)
    assert name in dir(mtlbench)


def test_editors_see_the_same_names_in_the_same_places() -> None:
    tree = ast.parse(Path(mtlbench.__file__).read_text())
    [typing] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in typing.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {"bench": "mtlbench.api.bench"} | {
        name: f"mtlbench.{home}" for name, home in mtlbench._HOMES.items()
    }
    assert sorted(seen) == sorted(mtlbench.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        mtlbench.no_such_name  # noqa: B018
