"""Imports from TorchJD (https://torchjd.org), which supplies the rules of several methods.

These are `pcgrad`, `aligned_mtl`, `pcd`, `cosmos`, `pbi` and `trimmed_mean`. No other module of the package imports
TorchJD. It is also the independent reference in the tests of `mgda`, `imtl_g`,
`config` and `fairgrad`, among others. The package implements these rules itself, for reasons that their docstrings
state: exact solvers for small problems, state for absent tasks and checkpoints, or gradients of very different size.

TorchJD's rules draw from PyTorch's global generator. Here they draw from the generator of the step, so that ranks agree
and a resumed run repeats the draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchjd.aggregation import AlignedMTLWeighting, PCDWeighting, PCGradWeighting, TrimmedMean
from torchjd.scalarization import COSMOS, PBI

from mtlbench.seeding import reseed

__all__ = [
    "COSMOS",
    "PBI",
    "AlignedMTLWeighting",
    "PCDWeighting",
    "PCGradWeighting",
    "Remembered",
    "TrimmedMean",
    "gramian_weights",
]


class Remembered(nn.Module):
    """A TorchJD weighting with state that a fresh instance can load.

    TorchJD creates the buffers of such a weighting in its first call. A checkpoint could therefore not be loaded into a
    new instance, which has none. This one is called once on a Gramian of the stored size before its state is read.

    Args:
        rule: A stateful `torchjd.aggregation` weighting that takes a Gramian.
    """

    def __init__(self, rule: Any):
        super().__init__()
        self.rule = rule

    @torch.no_grad()
    def forward(self, gramian: Tensor) -> Tensor:
        """Returns the weights (A,) for a Gramian (A, A), and moves the state."""
        return self.rule(gramian)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.rule.reset()
        sizes = [len(value) for key, value in state.items() if key.startswith(f"{prefix}rule.") and value.ndim]
        if sizes:
            self(torch.eye(sizes[0], dtype=torch.float64))
        super()._load_from_state_dict(state, prefix, *rest)


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
