"""Versions that a result depends on."""

from __future__ import annotations

import platform

import lightning as L
import torch

from mtlbench import __version__


def versions() -> dict[str, str]:
    """Return the versions of mtlbench, PyTorch, Lightning and Python, as results record them."""
    return {
        "mtlbench": __version__,
        "torch": torch.__version__,
        "lightning": L.__version__,
        "python": platform.python_version(),
    }
