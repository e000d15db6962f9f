"""Uniform: the plain sum of the scaled losses, the baseline that every other rule has to beat."""

from __future__ import annotations

from mtlbench.balancing.base import Balancer


class Uniform(Balancer):
    """Unit scalarisation ("In Defense of the Unitary Scalarization", arXiv:2201.04122).

    Rule: L = Σ_i L_i. The task's own static scale (``tasks.<name>.scale``) is part of L_i.

    Example:
        >>> import torch
        >>> Uniform().direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0., 1.])
    """

    TAXONOMY = "baseline"
