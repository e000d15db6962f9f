"""Extracts one task from a network with experts: its experts, its part of the routers and its head."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.errors import MethodError, unknown_name
from mtlbench.networks.experts import Routing
from mtlbench.networks.experts.network import ExpertNetwork

Kept = dict[str, list[int]]
"""Kept experts in ascending order, by name of the layer."""


def surviving(load: Sequence[float], threshold: float, top_k: int) -> list[int]:
    """Returns the experts chosen by more than ``threshold`` of a task's tokens, but at least k of them.

    Args:
        load: (E,), shares of the task's choices, summing to 1. A token makes k choices (Mod-Squad, arXiv:2212.08066).
        threshold: Share of tokens, 0 <= threshold < 1. 0 keeps every expert that was ever used.
        top_k: Experts per token k. If fewer exceed the threshold, the k most used ones are kept.

    Raises:
        MethodError: ``threshold`` is outside its range.
    """
    if not 0 <= threshold < 1:
        raise MethodError(
            "threshold, the share of a task's tokens that an expert must serve, must be at least 0 and below 1, which "
            f"no expert can exceed. Found {threshold}."
        )
    # Ties are broken by index, so that the result does not depend on the sort.
    by_use = sorted(range(len(load)), key=lambda expert: (-load[expert], expert))
    used = [expert for expert in by_use if load[expert] * top_k > threshold]
    return sorted(used if len(used) >= top_k else by_use[:top_k])


def kept_experts(network: ExpertNetwork, tasks: Sequence[str], task: str, threshold: float) -> Kept:
    """Returns the experts that a task keeps in every layer, based on its running shares of choices in training.

    Args:
        network: A trained network.
        tasks: All tasks of the run, in order.
        task: Task to extract.
        threshold: See `surviving`.

    Raises:
        MethodError: The task is unknown or was never trained, or ``threshold`` is outside its range.
    """
    if task not in tasks:
        raise MethodError(unknown_name("task", task, tasks))
    row = list(tasks).index(task)
    if not all(bool(layer.running.seen[row]) for layer in network.layers.values()):
        raise MethodError(
            f"Extraction needs the experts that a task used in training. {task!r} had no label in training. Extract "
            "another task."
        )
    return {
        name: surviving(layer.running.load[row].tolist(), threshold, layer.router.count([task]))
        for name, layer in network.layers.items()
    }


def extract(network: ExpertNetwork, task: str, kept: Mapping[str, Sequence[int]]) -> ExpertNetwork:
    """Returns a separate network for one task, which equals the whole one if all routes stay among the kept experts.

    Args:
        network: The whole network, which is not changed.
        task: Task to extract.
        kept: Kept experts by name of the layer, at least k each.
    """
    alone = copy.deepcopy(network)
    for table in _tables(alone):
        for other in [name for name in table if name != task]:
            del table[other]
    for name, layer in alone.layers.items():
        layer.router.only(task)
        layer.keep(list(kept[name]))
    return alone


@contextmanager
def routes(network: ExpertNetwork) -> Iterator[dict[str, Tensor]]:
    """Records the experts (N, k) chosen by each layer in the last forward pass within the context."""
    chosen: dict[str, Tensor] = {}

    def recorder(name: str) -> Any:
        def record(module: nn.Module, inputs: Any, routing: Routing) -> None:
            chosen[name] = routing.chosen

        return record

    handles = [layer.router.register_forward_hook(recorder(name)) for name, layer in network.layers.items()]
    try:
        yield chosen
    finally:
        for handle in handles:
            handle.remove()


def outside(chosen: Mapping[str, Tensor], kept: Mapping[str, Sequence[int]], images: int) -> Tensor:
    """Returns whether a token's route leaves the kept experts in some layer, as bool (images, tokens).

    Args:
        chosen: Result of `routes` for one task.
        kept: Kept experts by name of the layer.
        images: Number of images in the pass.
    """
    found = [
        ~torch.isin(choice, torch.tensor(list(kept[name]), device=choice.device)).all(1)
        for name, choice in chosen.items()
    ]
    return torch.stack(found).any(0).unflatten(0, (images, -1))


def _tables(network: ExpertNetwork) -> Iterator[Any]:
    """Yields every module dictionary that is keyed by task."""
    yield network.heads
    yield network.encoder.embeddings
    for router in network.routers:
        yield from (router.embeddings, router.matrices, router.descriptions)
