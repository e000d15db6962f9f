"""Measures size, products and score of the network of one task, taken from a pruned network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from mtlbench.errors import MethodError, unknown_name
from mtlbench.networks.experts.extracted import describe_pruned, save_pruned
from mtlbench.networks.pruned_files import alone, packed
from mtlbench.networks.pruning import PrunedNetwork
from mtlbench.training.extraction_report import first_score
from mtlbench.training.load import LoadedRun


@dataclass(frozen=True)
class Measured:
    """The network of one task.

    Attributes:
        task: Its name.
        weights, kept: Weights of the layers that are pruned, and those of them that are kept.
        stored, dense: Bytes of all tensors as they are stored, and of the same network with its zeros.
        flops, dense_flops: Of the pruned layers for one image, without and with pruned weights.
        score, protocol: The task's first score on the last split, and its id.
    """

    task: str
    weights: int
    kept: int
    stored: int
    dense: int
    flops: int
    dense_flops: int
    score: float
    protocol: str


def measure(loaded: LoadedRun, task: str) -> Measured:
    """Returns what the network of one task takes and how well it does.

    Args:
        loaded: A run whose network is pruned.
        task: Name of the task.

    Raises:
        MethodError: The run has no such task.
    """
    method, network = loaded.method, cast(PrunedNetwork, loaded.method.network)
    if task not in method.tasks:
        raise MethodError(unknown_name("task", task, method.tasks))
    masks = [network.mask(name) for name in (*network.trunk(), *network.of(task))]
    single = alone(network, method.tasks[task], method.spec.model)
    height, width = loaded.spec.model["image_size"]
    image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    dense_flops, flops = network.products(image, [task])
    protocol, score = first_score(loaded, single, task)
    return Measured(
        task,
        sum(mask.numel() for mask in masks),
        sum(int(mask.sum()) for mask in masks),
        sum(value.numel() * value.element_size() for value in packed(network, task).values()),
        sum(value.numel() * value.element_size() for value in single.state_dict().values()),
        flops,
        dense_flops,
        score,
        protocol,
    )


def write(loaded: LoadedRun, row: Measured, out: Path) -> None:
    """Writes the network of a measured task with its source.

    Args:
        loaded: The run.
        row: What `measure` returned.
        out: Folder for ``model.safetensors`` and ``model.json``.
    """
    source = {"run_id": loaded.result["run_id"], "hash": loaded.spec.hash, "score": {row.protocol: row.score}}
    description = describe_pruned(loaded.method.tasks[row.task], loaded.spec.model, source)
    save_pruned(cast(PrunedNetwork, loaded.method.network), description, out)
