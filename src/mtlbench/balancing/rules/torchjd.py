"""The one place that knows TorchJD (https://torchjd.org), the library that supplies every rule it can.

Its rules draw from PyTorch's global generator; here they draw from the step's own, so that ranks agree and a
resumed run repeats the draw.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchjd.aggregation import AlignedMTLWeighting, PCGradWeighting

from mtlbench.seeding import reseed

__all__ = ["AlignedMTLWeighting", "PCGradWeighting", "gramian_weights"]


def gramian_weights(rule: Callable[..., Tensor], gramian: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the weights (A,) of a TorchJD weighting for a Gramian (A, A).

    Args:
        rule: A `torchjd.aggregation` weighting that takes a Gramian.
        gramian: (A, A), positive semi-definite.
        generator: Source of random draws; one number is taken from it.
    """
    devices = [gramian.device] if gramian.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        reseed(int(torch.randint(2**62, (), generator=generator)), gramian.device)
        return rule(gramian)
