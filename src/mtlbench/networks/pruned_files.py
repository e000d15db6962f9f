"""The network of one task from a pruned network, and its weights without the zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.named import stored
from mtlbench.networks.pruning import PrunedNetwork

PRUNED = "pruned"
"""Value of ``form`` in the description of a pruned network."""

_BITS = ".bits"


def alone(network: PrunedNetwork, task: Any, model: Mapping[str, Any]) -> DenseNetwork:
    """Returns a network with the trunk and the head of one task, whose predictions are those of the whole network.

    Args:
        network: The whole network, which is not changed.
        task: What the head needs: the task's ``name``, ``dense`` and ``channels``.
        model: Section ``model`` of the run.
    """
    found = DenseNetwork({task.name: task}, **{**model, "weights": None})
    names = found.state_dict().keys()
    found.load_state_dict({name: value for name, value in network.state_dict().items() if name in names})
    return found.eval()


def packed(network: PrunedNetwork, task: str) -> dict[str, Tensor]:
    """Returns the weights of trunk and head of one task; of pruned layers, the kept values and a bit per weight.

    Args:
        network: The whole network.
        task: Name of the task.
    """
    wanted, head = {*network.trunk(), *network.of(task)}, f"heads.{stored(task)}."
    found = {}
    for name, value in network.state_dict().items():
        if name in wanted:
            mask = network.mask(name)
            found[name] = value[mask].clone()
            found[name + _BITS] = torch.from_numpy(np.packbits(mask.flatten().cpu().numpy()))
        elif not name.startswith("masks.") and (not name.startswith("heads.") or name.startswith(head)):
            found[name] = value.contiguous().clone()
    return found


def unpacked(weights: Mapping[str, Tensor], task: Any, model: Mapping[str, Any]) -> DenseNetwork:
    """Returns the network whose weights `packed` returned.

    Args:
        weights: Weights by name.
        task: What the head needs: the task's ``name``, ``dense`` and ``channels``.
        model: Section ``model`` of the run.
    """
    network = DenseNetwork({task.name: task}, **{**model, "weights": None})
    state = {name: value for name, value in weights.items() if not name.endswith(_BITS)}
    for name, bits in weights.items():
        if name.endswith(_BITS):
            weight = network.get_parameter(name.removesuffix(_BITS))
            mask = torch.from_numpy(np.unpackbits(bits.numpy(), count=weight.numel())).bool().view_as(weight)
            whole = torch.zeros_like(weight, dtype=state[name.removesuffix(_BITS)].dtype)
            whole[mask] = state[name.removesuffix(_BITS)]
            state[name.removesuffix(_BITS)] = whole
    network.load_state_dict(state)
    return network.eval()
