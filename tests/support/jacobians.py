"""Random Jacobians, degenerate kinds included, for tests of gradient rules."""

from __future__ import annotations

import torch

KINDS = ("plain", "zero row", "twins", "dependent", "spread")
INDEPENDENT = ("plain", "spread")


def jacobian(kind, tasks, seed=0, columns=60):
    """Returns (tasks, columns) rows in float64.

    Args:
        kind: ``"plain"``; ``"zero row"``, the last; ``"twins"``, the last two equal; ``"dependent"``, of rank about
            half; ``"spread"``, with norms from 1e-3 to 1e3.
        tasks: Rows, at least 2.
        seed: Seed of the draw.
        columns: More than tasks, or rows depend on each other.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = draw(tasks, columns)
    if kind == "zero row":
        found[-1] = 0
    elif kind == "twins":
        found[-1] = found[-2]
    elif kind == "dependent":
        found = draw(tasks, (tasks + 1) // 2) @ draw((tasks + 1) // 2, columns)
    elif kind == "spread":
        found *= torch.logspace(-3, 3, tasks, dtype=torch.float64)[:, None]
    return found


def unit(jacobian):
    """Returns the rows with length 1; zero rows stay."""
    norms = jacobian.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, jacobian / norms, 0.0)
