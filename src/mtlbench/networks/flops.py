"""FLOPs of one forward pass, products of experts included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.dispatch import flop_mapping


def forward_flops(network: MTLNetwork, image: Tensor, tasks: Sequence[str]) -> int:
    """Returns the FLOPs of a forward pass, two per multiply-add, of the experts that are active only.

    Args:
        network: Any.
        image: (B, 3, H, W) uint8.
        tasks: Names of the tasks to predict.
    """
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=flop_mapping()) as counter:
        network(image, list(tasks))
    return counter.get_total_flops()
