"""The one place that knows TorchJD (https://torchjd.org), the library that supplies every rule it can.

Its rules draw from PyTorch's global generator; here they draw from the step's own, so that ranks agree and a
resumed run repeats the draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torchjd.aggregation import PCGradWeighting

from mtlbench.noise import reseed

__all__ = ["PCGradWeighting", "aggregate", "gramian_weights"]


def _seeded(rule: Callable[[Tensor], Tensor], value: Tensor, generator: torch.Generator) -> Tensor:
    devices = [value.device] if value.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        reseed(int(torch.randint(2**62, (), generator=generator)), value.device)
        return rule(value)


def gramian_weights(rule: Callable[..., Tensor], gramian: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the weights (A,) of a TorchJD weighting for a Gramian (A, A).

    Args:
        rule: A `torchjd.aggregation` weighting that takes a Gramian.
        gramian: (A, A), positive semi-definite.
        generator: Source of random draws; one number is taken from it.
    """
    return _seeded(rule, cast(Any, gramian), generator)


def aggregate(
    rule: Callable[..., Tensor], jacobian: Tensor, generator: torch.Generator, *, columns: int | None = None
) -> Tensor:
    """Returns the direction (P,) of a TorchJD aggregator for a Jacobian (A, P).

    Args:
        rule: A `torchjd.aggregation` aggregator.
        jacobian: (A, P).
        generator: Source of random draws; one number is taken from it.
        columns: For a rule that treats every coordinate alone: so many at a time on a CPU, where what lies between
            then stays in the cache. The result is the same.
    """
    if columns is None or jacobian.device.type != "cpu":
        return _seeded(rule, jacobian, generator)
    return _seeded(lambda whole: torch.cat([rule(part) for part in whole.split(columns, 1)]), jacobian, generator)
