"""The examples in docstrings of methods, balancers and metrics run and are right."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import mtlbench.balancing
import mtlbench.methods
import mtlbench.metrics
from mtlbench import registry

PACKAGES = (mtlbench.methods, mtlbench.balancing, mtlbench.metrics)
MODULES = [
    name
    for package in PACKAGES
    for name in (package.__name__, *(m.name for m in pkgutil.iter_modules(package.__path__, package.__name__ + ".")))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", registry.shipped())
def test_every_method_has_an_example(name):
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert any(test.examples for test in finder.find(registry.find(name)))
