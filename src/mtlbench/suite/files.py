"""Finds suites: ``experiments/*.yaml`` of the current folder and of the package."""

from __future__ import annotations

import os
from pathlib import Path

from mtlbench.errors import SuiteError, unknown_name
from mtlbench.suite import nodes


def folders() -> list[Path]:
    """Return the folders that hold suites: ``experiments/`` of the current folder if there is one, then the shipped."""
    here = Path("experiments")
    installed = Path(__file__).resolve().parents[1] / "experiments"
    shipped = installed if installed.is_dir() else Path(__file__).resolve().parents[3] / "experiments"
    return [here, shipped] if here.is_dir() and here.resolve() != shipped else [shipped]


def available() -> dict[str, str]:
    """Return every suite by name, with its title; a suite of the user's own replaces a shipped one of its name."""
    found: dict[str, str] = {}
    for folder in reversed(folders()):
        for path in sorted(folder.glob("*.yaml")):
            note = f" ({path} replaces the shipped suite of this name)" if path.stem in found else ""
            found[path.stem] = _title(path) + note
    return dict(sorted(found.items()))


def _title(path: Path) -> str:
    """Return the title of a suite's file, ``""`` if it has none or cannot be read; `read` reports why."""
    try:
        node = nodes.compose(path.read_text(encoding="utf-8"))
        found = [value for key, value in node.value if key.value == "title"] if nodes.is_mapping(node) else []
        return str(nodes.value_of(found[0], text=True)) if found else ""
    except (ValueError, OSError):
        return ""


def locate(name: str) -> Path:
    """Return the file of a suite given by name or by path.

    Raises:
        SuiteError: If there is none.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if os.path.isfile(path):
            return path
        raise SuiteError(f"A suite given as a path must exist. There is no file {path}.")
    for folder in folders():
        if os.path.isfile(folder / f"{name}.yaml"):
            return folder / f"{name}.yaml"
    places = " and ".join(f"{folder}/" for folder in folders())
    raise SuiteError(unknown_name("suite", name, available()) + f" Looked in {places}.")
