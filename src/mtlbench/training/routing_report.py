"""Routing of a task that a run was not trained on, from its description alone, beside that of the run's tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtlbench.data import Collate, Samples
from mtlbench.errors import MethodError
from mtlbench.networks.experts.network import ExpertNetwork
from mtlbench.networks.experts.routing import TaskDescription
from mtlbench.tasks.inputs import inputs_of, length
from mtlbench.training.extraction_report import expert_network
from mtlbench.training.load import LoadedRun

BATCH = 32
SAMPLES = 256
"""Most samples whose routing is measured."""

NEW = "(new)"
"""Name of the new task within the network. No task of a suite can have it."""


@dataclass(frozen=True)
class Neighbour:
    """A task of the run beside the new one.

    Attributes:
        task: Its name.
        distance: Total-variation distance of the shares of choices, 0..1, mean over layers.
        cosine: Cosine of the shares, mean over layers.
    """

    task: str
    distance: float
    cosine: float


@dataclass(frozen=True)
class Routed:
    """The routing of the same samples for the new task and for those of the run.

    Attributes:
        samples: Number of samples.
        neighbours: The run's tasks, the nearest first.
        shares: Layer -> task -> share of choices of every expert; the new task is `NEW`.
    """

    samples: int
    neighbours: Sequence[Neighbour]
    shares: Mapping[str, Mapping[str, Sequence[float]]]


def routing(loaded: LoadedRun, vector: Sequence[float], samples: Samples) -> Routed:
    """Measures how a new task would be routed before any training on it.

    Args:
        loaded: A run whose gate reads descriptions.
        vector: The new task's description, as long as those of the run.
        samples: Samples, of which at most `SAMPLES` are read, evenly spread; no labels are used.

    Raises:
        MethodError: The run has another gate, or the vector another length.
    """
    network, tasks = expert_network(loaded), list(loaded.method.tasks)
    _describe(network, vector, loaded.spec.label)
    places = torch.linspace(0, len(samples) - 1, min(SAMPLES, len(samples))).long().unique().tolist()
    tables = _tables(network, [*tasks, NEW], _batches(samples, places))
    neighbours = [
        _neighbour(task, [(table[at], table[-1]) for table in tables.values()]) for at, task in enumerate(tasks)
    ]
    shares = {layer: dict(zip([*tasks, NEW], table.tolist(), strict=True)) for layer, table in tables.items()}
    return Routed(len(places), sorted(neighbours, key=lambda found: found.distance), shares)


def _describe(network: ExpertNetwork, vector: Sequence[float], label: str) -> None:
    for router in network.routers:
        known: Any = router.descriptions
        if router.encode is None:
            raise MethodError(
                f"Only a gate that reads descriptions can route a task that it has not seen. {label} has another gate. "
                "Train it with gate: description."
            )
        wanted = len(next(iter(known.values())).vector)
        if len(vector) != wanted:
            raise MethodError(
                f"All descriptions of a run have one length. Those of {label} have {wanted} numbers, and this one "
                f"{len(vector)}. Describe it with the same encoder."
            )
        known[NEW] = TaskDescription(vector).to(next(router.parameters()).device)


def _batches(samples: Samples, places: Sequence[int]) -> Iterator[tuple[Any, int]]:
    """Yields inputs and their weight: the number of tokens of texts, or of samples."""
    for start in range(0, len(places), BATCH):
        batch = Collate({})([{**samples[at], "targets": {}} for at in places[start : start + BATCH]])
        yield inputs_of(batch), int(batch.get("tokens", length(batch)))


@torch.no_grad()
def _tables(network: ExpertNetwork, tasks: Sequence[str], batches: Iterator[tuple[Any, int]]) -> dict[str, Tensor]:
    """Returns the shares of choices (T, E) of every layer over all tokens."""
    sums: dict[str, Tensor] = {}
    whole = 0
    for inputs, weight in batches:
        tokens, _, present = network.encoder.begin(inputs)
        _, statistics = network.encoder.finish(tokens, tasks, present)
        whole += weight
        for name, layer in statistics.items():
            sums[name] = sums.get(name, torch.zeros(1)) + weight * layer.load.double()
    return {name: table / whole for name, table in sums.items()}


def _neighbour(task: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> Neighbour:
    distances = [0.5 * (one - two).abs().sum() for one, two in pairs]
    cosines = [torch.cosine_similarity(one, two, dim=0) for one, two in pairs]
    return Neighbour(task, float(torch.stack(distances).mean()), float(torch.stack(cosines).mean()))
