"""mtlbench: compare ways of training several tasks together. Names load lazily, so that status needs no torch."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "MTLMethod": "method",
    "MTLDataModule": "data",
    "Balancer": "balancing",
    "make_balancer": "balancing",
    "Task": "tasks",
    "load_run": "training.load",
    "load_extracted": "networks.experts.extracted",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
