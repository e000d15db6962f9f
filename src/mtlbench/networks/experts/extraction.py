"""Extracts one task from a network with experts: its experts, its rows of the routers and its head."""

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
    """Returns the experts that a task keeps: those chosen by more than ``threshold`` of its tokens, but at least k.

    Args:
        load: (E,), shares of the task's choices, summing to 1; a token makes k of them (Mod-Squad, arXiv:2212.08066).
        threshold: Share of tokens, 0 <= threshold < 1. 0 keeps every expert that was ever used.
        top_k: k. If fewer survive, the k most used ones are kept.

    Raises:
        MethodError: ``threshold`` is outside its range.
    """
    if not 0 <= threshold < 1:
        raise MethodError(
            f"threshold is the share of a task's tokens that an expert must serve, 0 <= threshold < 1: no "
            f"expert can reach 1. Found {threshold}."
        )
    by_use = sorted(range(len(load)), key=lambda expert: (-load[expert], expert))
    used = [expert for expert in by_use if load[expert] * top_k > threshold]
    return sorted(used if len(used) >= top_k else by_use[:top_k])


def kept_experts(network: ExpertNetwork, tasks: Sequence[str], task: str, threshold: float) -> Kept:
    """Returns the experts that a task keeps in every layer, by the running shares of its choices in training.

    Args:
        network: Trained.
        tasks: All tasks of the run, in order.
        task: One of them.
        threshold: See `surviving`.

    Raises:
        MethodError: The task is unknown or was never trained, or ``threshold`` is outside its range.
    """
    if task not in tasks:
        raise MethodError(unknown_name("task", task, tasks))
    row = list(tasks).index(task)
    if not all(bool(layer.running.seen[row]) for layer in network.layers.values()):
        raise MethodError(f"Extraction needs to know which experts a task uses; {task!r} had no label in training.")
    return {
        name: surviving(layer.running.load[row].tolist(), threshold, layer.router.top_k)
        for name, layer in network.layers.items()
    }


def extract(network: ExpertNetwork, task: str, kept: Mapping[str, Sequence[int]]) -> ExpertNetwork:
    """Returns a separate network for one task, equal to the whole one wherever routes stay among the kept experts.

    Args:
        network: Not changed.
        task: Task to extract.
        kept: Experts by name of the layer, at least k each.
    """
    alone = copy.deepcopy(network)
    for table in _tables(alone):
        for other in [name for name in table if name != task]:
            del table[other]
    for name, layer in alone.layers.items():
        layer.keep(list(kept[name]))
    return alone


@contextmanager
def routes(network: ExpertNetwork) -> Iterator[dict[str, Tensor]]:
    """Records, by name of the layer, the experts (N, k) chosen in the last forward pass within the context."""
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
    """Returns (images, tokens) bool: whether a token's route leaves the kept experts in some layer.

    Args:
        chosen: Of `routes`, for one task.
        kept: Experts by name of the layer.
        images: In the pass.
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
