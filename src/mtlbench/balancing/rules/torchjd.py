"""Imports from TorchJD (https://torchjd.org), which supplies the rules of `pcgrad` and `aligned_mtl`.

No other module of the package imports TorchJD. It is also the independent reference in the tests of `mgda`, `imtl_g`,
`config` and `fairgrad`, among others. The package implements these rules itself, for reasons that their docstrings
state: exact solvers for small problems, state for absent tasks and checkpoints, or gradients of very different size.

TorchJD's rules draw from PyTorch's global generator. Here they draw from the generator of the step, so that ranks agree
and a resumed run repeats the draw.
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
        generator: Source of random draws, from which one number is taken.
    """
    devices = [gramian.device] if gramian.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        reseed(int(torch.randint(2**62, (), generator=generator)), gramian.device)
        return rule(gramian)
