"""Files and functions can be read at a glance. (`make lint` checks style and types.)"""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "data_modules").rglob("*.py")])


def lengths() -> dict[str, int]:
    """Returns the lines of every function."""
    found = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found[f"{path.relative_to(ROOT)}:{node.name}:{node.lineno}"] = (node.end_lineno or 0) - node.lineno + 1
    return found


def test_files_are_short() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: n for name, n in lines.items() if n > 400} == {}
    assert statistics.median(lines.values()) <= 120


def test_functions_are_short() -> None:
    assert {name: n for name, n in lengths().items() if n > 80} == {}
    assert statistics.median(lengths().values()) <= 10


def test_nothing_refers_to_places_outside_the_project() -> None:
    outside = "/" + "work" + "/"
    places = [*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "experiments").glob("*.yaml"), ROOT / "README.md"]
    assert [str(path) for path in places if outside in path.read_text()] == []
