"""Balancing: rules that turn T task losses into one update, and the plumbing that makes them exact."""

from __future__ import annotations

from typing import Any

from mtlbench.balancing.base import Balancer, Context
from mtlbench.errors import MethodError

__all__ = ["Balancer", "Context", "make_balancer"]


def make_balancer(name: str, **arguments: Any) -> Balancer:
    """Returns a balancer by name, to use by hand.

    Args:
        name: A shipped rule, for example ``"pcgrad"``, or ``module:Class``.
        **arguments: Hyper-parameters of the rule.

    Raises:
        MethodError: If the name or an argument is unknown.

    Example:
        >>> import torch
        >>> pcgrad = make_balancer("pcgrad")
        >>> pcgrad.direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))
        tensor([0.5000, 1.5000])
    """
    from mtlbench import registry

    cls = registry.find(name)
    if not issubclass(cls, Balancer):
        raise MethodError(f"A balancer is a subclass of Balancer; {name!r} is a method with plans or a network.")
    registry.check_arguments(name, cls, arguments)
    return cls(**arguments)
