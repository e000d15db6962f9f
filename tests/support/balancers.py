"""Contexts and matrices for testing balancing rules by hand."""

from __future__ import annotations

import torch

from mtlbench.balancing import Context
from mtlbench.seeding import seed_of

CONFLICT = ((1.0, 0.0), (-1.0, 1.0))
ORTHOGONAL = ((1.0, 0.0), (0.0, 2.0))


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def gramian_of(jacobian):
    return (jacobian @ jacobian.T).double()


def draws(seed, step=0):
    """Returns the generator of a step, in a run of that seed and by hand."""
    return torch.Generator().manual_seed(seed_of("method", seed, step))


def context(losses, *, active=None, step=0, epoch=0, seed=0, lookahead=None):
    """Returns the context of a step whose losses are given."""

    def none(change):
        raise AssertionError("This rule must not look ahead.")

    active = tuple(range(len(losses))) if active is None else active
    generator = torch.Generator().manual_seed(seed)
    plain = torch.neg  # a plain step of rate 1
    return Context(active, losses.detach(), step, epoch, generator, lookahead or none, preview=plain, descent=plain)
