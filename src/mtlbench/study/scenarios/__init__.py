"""Scenarios: what a study varies besides method and seed. Every file here is one scenario. Needs no torch."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from mtlbench.errors import unknown_name
from mtlbench.study.scenarios.base import Fault, Scenario, Scope

__all__ = ["Scenario", "Scope", "read", "shipped"]


def shipped() -> dict[str, str]:
    """Returns the names of the scenarios with the first line of their module."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    found = {path.stem: ast.get_docstring(ast.parse(path.read_text())) or "" for path in files if path.stem != "base"}
    return {name: text.split("\n")[0] for name, text in found.items()}


def read(section: Mapping[str, Any], scope: Scope) -> tuple[Scenario | None, list[Fault]]:
    """Returns the scenario of a suite's section ``scenario``, and what is wrong with it.

    Args:
        section: ``kind`` and the options of that scenario.
        scope: What the suite compares.
    """
    options = dict(section)
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in shipped():
        return None, [("kind", unknown_name("kind of scenario", str(kind), shipped()))]
    cls = _class_of(kind)
    known = {field.name: field for field in fields(cls) if field.init}
    faults = [(key, unknown_name("option", key, known)) for key in options if key not in known]
    needed = [name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING]
    faults += [("", f"{kind} needs the option {name!r}.") for name in needed if name not in options]
    if faults:
        return None, faults
    scenario = cls(**options)
    faults = list(scenario.faults(scope))
    return (None if faults else scenario), faults


def _class_of(kind: str) -> type[Scenario]:
    module = importlib.import_module(f"{__name__}.{kind}")
    classes: Collection[Any] = vars(module).values()
    return next(c for c in classes if isinstance(c, type) and issubclass(c, Scenario) and c is not Scenario)
