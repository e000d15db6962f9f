"""Measures cost and score of the network of one task, extracted from a run with experts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtlbench.data.contract import streams
from mtlbench.errors import MethodError
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.experts.extracted import describe, save
from mtlbench.networks.experts.extraction import extract, kept_experts, outside, routes
from mtlbench.networks.experts.network import ExpertNetwork
from mtlbench.networks.families import family_of
from mtlbench.networks.family import Model
from mtlbench.networks.flops import forward_flops
from mtlbench.networks.pruning import PrunedNetwork
from mtlbench.tasks.inputs import inputs_of
from mtlbench.training.load import LoadedRun

THRESHOLDS = (0.0, 0.01, 0.1, 0.3, 0.5)
"""Shares of a task's tokens that the report tries."""


@dataclass(frozen=True)
class Measured:
    """One network on one task's test split.

    Attributes:
        task, threshold: What was taken out; threshold None for the whole network.
        experts: Experts kept, over all layers.
        parameters: Number of parameters.
        flops: Of one image in one forward pass, active ones.
        milliseconds: Median time of one image.
        score: The task's first score.
        protocol: Its id.
        off_route: Share of tokens whose route in the whole network leaves the kept experts; None for the whole one.
    """

    task: str
    threshold: float | None
    experts: int
    parameters: int
    flops: int
    milliseconds: float
    score: float
    protocol: str
    off_route: float | None


def measure(loaded: LoadedRun, network: ExpertNetwork, task: str, thresholds: Sequence[float]) -> Iterator[Measured]:
    """Yields the whole network's row, then one per threshold.

    Raises:
        MethodError: The task is unknown or a threshold outside [0, 1).
    """
    names = list(loaded.method.tasks)
    all_kept = [kept_experts(network, names, task, threshold) for threshold in thresholds]
    yield _row(
        loaded, network, task, None, {name: range(layer.experts.experts) for name, layer in network.layers.items()}
    )
    for threshold, kept in zip(thresholds, all_kept, strict=True):
        alone = extract(network, task, kept)
        yield _row(loaded, alone, task, threshold, kept, _off_route(loaded, network, task, kept))


def expert_network(loaded: LoadedRun) -> ExpertNetwork:
    """Returns the network of a run with experts, in evaluation mode.

    Raises:
        MethodError: If the run's network has no experts.
    """
    network: Any = loaded.method.network
    if isinstance(network, ExpertNetwork):
        return network.eval()
    alone = " on one task alone" if len(loaded.method.tasks) == 1 else ""
    if isinstance(network, PrunedNetwork):
        remedy = "Its network is pruned: `mtlbench extract` writes one task of it."
    elif alone:
        remedy = "Write it as it is: `mtlbench export` without --task."
    else:
        remedy = (
            "Write all its tasks, with `mtlbench export` without --task, or give a run of a method with experts, such "
            "as mod_squad, or of disparse."
        )
    raise MethodError(
        f"Extraction needs a network with experts. {loaded.result['run_id']} was trained by "
        f"{loaded.result['method']!r}{alone}. {remedy}"
    )


def _row(
    loaded: LoadedRun, network: ExpertNetwork, task: str, threshold: float | None, kept: Any, off: float | None = None
) -> Measured:
    protocol, score = first_score(loaded, network, task)
    model = Model(**{**loaded.spec.model, "weights": None})
    image = family_of(model.encoder).example(model)
    return Measured(
        task,
        threshold,
        sum(len(list(experts)) for experts in kept.values()),
        sum(p.numel() for p in network.parameters()),
        forward_flops(network, image, [task]),
        _milliseconds(network, image, task),
        score,
        protocol,
        off,
    )


def _batches(loaded: LoadedRun, task: str) -> Iterator[tuple[Any, Any]]:
    for batch in loaded.data.eval_dataloader(loaded.data.SPLITS[-1]):
        for stream in streams(batch):
            if task in stream["targets"]:
                yield inputs_of(stream), stream["targets"][task]


def first_score(loaded: LoadedRun, network: MTLNetwork, task: str) -> tuple[str, float]:
    """Returns the id and the value of a task's first score on the last split.

    Args:
        loaded: The run whose data is used.
        network: A network that predicts the task.
        task: Name of the task.
    """
    metric: Any = loaded.method.tasks[task].metric()
    with torch.inference_mode():
        for image, target in _batches(loaded, task):
            metric.update(network(image, [task]).predictions[task].float(), target)
    protocol, score = next(iter(metric.compute().items()))
    return protocol, float(score)


def _off_route(loaded: LoadedRun, network: ExpertNetwork, task: str, kept: Any) -> float:
    found = []
    with torch.inference_mode(), routes(network) as chosen:
        for image, _ in _batches(loaded, task):
            network(image, [task])
            found.append(outside(chosen, kept, 1)[0].float())  # Texts differ in their numbers of tokens.
    return float(torch.cat(found).mean())


def _milliseconds(network: ExpertNetwork, image: Any, task: str) -> float:
    times = []
    with torch.inference_mode():
        for _ in range(30):
            start = time.perf_counter()
            network(image, [task])
            times.append(time.perf_counter() - start)
    return 1000 * sorted(times)[len(times) // 2]


def write(loaded: LoadedRun, network: ExpertNetwork, row: Measured, out: Path) -> None:
    """Writes the extracted network of one measured row, with its source.

    Args:
        loaded: The run.
        network: Its network, see `expert_network`.
        row: What to write: its task at its threshold, with the score that was measured.
        out: Folder for ``model.safetensors`` and ``model.json``.
    """
    method: Any = loaded.method
    threshold = float(row.threshold or 0)
    kept = kept_experts(network, list(method.tasks), row.task, threshold)
    source = {
        "run_id": loaded.result["run_id"],
        "hash": loaded.spec.hash,
        "threshold": threshold,
        "score": {row.protocol: row.score},
        "off_route": row.off_route,
    }
    alone = extract(network, row.task, kept)
    save(alone, describe(method.tasks[row.task], loaded.spec.model, method.options, kept, source), out)
