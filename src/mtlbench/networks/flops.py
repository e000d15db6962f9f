"""Counts the FLOPs of one forward pass, including the products of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.experts.dispatch import flop_mapping


def forward_flops(network: MTLNetwork, image: Tensor, tasks: Sequence[str]) -> int:
    """Counts the FLOPs of a forward pass, two per multiply-add. Of the experts, only the active ones count.

    Args:
        network: Any network.
        image: (B, 3, H, W) uint8.
        tasks: Names of the tasks to predict.
    """
    mapping = {**flop_mapping(), torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        network(image, list(tasks))
    return counter.get_total_flops()


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    # PyTorch has no formula for attention on a CPU.
    return sdpa_flop_count(query, key, value)
