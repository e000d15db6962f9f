"""Every benchmark can be imported from the root of a clone, as ``python -m benchmarks.NAME`` does."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from unittest import mock

import pytest

NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_it_finds_what_it_imports(name: str) -> None:
    with mock.patch.dict(os.environ):  # Some set the number of threads.
        importlib.import_module(f"benchmarks.{name}")
