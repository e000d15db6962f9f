"""mtlbench: compare multi-task training methods fairly.

Names load on first use, so that commands which only read files start without PyTorch.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

import mtlbench.bench as _bench

if TYPE_CHECKING:
    from mtlbench.api.bench import bench
    from mtlbench.api.results import Results, results
    from mtlbench.balancing import Balancer, make_balancer
    from mtlbench.data import MTLDataModule
    from mtlbench.method import MTLMethod
    from mtlbench.metrics.protocol import Protocol
    from mtlbench.networks.base import MTLNetwork, Outputs
    from mtlbench.networks.experts.extracted import load_extracted
    from mtlbench.tasks import (
        Classification,
        Depth,
        Edges,
        HumanParts,
        Normals,
        Regression,
        Saliency,
        SemanticSegmentation,
        Task,
    )
    from mtlbench.training.exported import load_exported
    from mtlbench.training.load import load_run

__version__ = "0.2.0"

_HOMES = {
    "MTLMethod": "method",
    "MTLNetwork": "networks.base",
    "Outputs": "networks.base",
    "MTLDataModule": "data",
    "results": "api.results",
    "Results": "api.results",
    "Task": "tasks",
    "SemanticSegmentation": "tasks",
    "HumanParts": "tasks",
    "Saliency": "tasks",
    "Edges": "tasks",
    "Normals": "tasks",
    "Depth": "tasks",
    "Classification": "tasks",
    "Regression": "tasks",
    "Balancer": "balancing",
    "make_balancer": "balancing",
    "Protocol": "metrics.protocol",
    "load_run": "training.load",
    "load_exported": "training.exported",
    "load_extracted": "networks.experts.extracted",
}
"""Module of every public name."""

__all__ = [
    "Balancer",
    "Classification",
    "Depth",
    "Edges",
    "HumanParts",
    "MTLDataModule",
    "MTLMethod",
    "MTLNetwork",
    "Normals",
    "Outputs",
    "Protocol",
    "Regression",
    "Results",
    "Saliency",
    "SemanticSegmentation",
    "Task",
    "bench",
    "load_exported",
    "load_extracted",
    "load_run",
    "make_balancer",
    "results",
]


class _CallableBench(ModuleType):
    """The package `mtlbench.bench`, which Python binds to the name of the function once it is imported."""

    def __call__(self, *args: Any, **kwargs: Any) -> Results:
        """Trains the missing runs of a suite, see `mtlbench.api.bench.bench`."""
        from mtlbench.api.bench import bench

        return bench(*args, **kwargs)


_bench.__class__ = _CallableBench


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
