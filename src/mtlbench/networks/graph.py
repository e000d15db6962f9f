"""One network per task whose trunks are pulled together along the edges of a graph of tasks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtlbench.errors import MethodError
from mtlbench.networks.dense import build_dense
from mtlbench.networks.named import NamedModules
from mtlbench.networks.parallel_encoders import SeparateColumns
from mtlbench.tasks import Task

Adjacency = list[list[float]]
"""Weights a_il >= 0 of the edges of a graph: symmetric, with zeros on the diagonal."""


class GraphNetwork(SeparateColumns):
    """T single-task networks (columns). All start from the weights of the single-task network of the same seed.

    A column runs only if its task is requested.
    """

    def __init__(self, tasks: Mapping[str, Task], **model: Any) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            model: Arguments of `DenseNetwork`.

        Raises:
            SuiteError: The encoder cannot be built.
        """
        super().__init__()
        single = build_dense(tasks, model)
        self.encoders = NamedModules({task: copy.deepcopy(single.encoder) for task in tasks})
        self.necks = NamedModules({task: copy.deepcopy(single.neck) for task in tasks})
        self.heads = single.heads

    def trunk(self, task: str) -> list[nn.Parameter]:
        """Returns the trainable parameters of a column without its head, in the same order for every task."""
        trunk = (self.encoders[task], self.necks[task])
        return [p for module in trunk for p in module.parameters() if p.requires_grad]


def named_graph(name: str, tasks: int) -> Adjacency:
    """Returns a graph whose edges have weight 1.

    Args:
        name: ``"complete"``: an edge between any two tasks. ``"ring"``: between neighbours in the order of the tasks.
        tasks: Number of tasks T.
    """
    near = {1, tasks - 1} - {0} if name == "ring" else set(range(1, tasks))
    return [[float(abs(i - j) in near) for j in range(tasks)] for i in range(tasks)]


def affinity_graph(affinity: Sequence[Sequence[float]], threshold: float | None = None) -> Adjacency:
    """Returns the graph with an edge of weight 1 where the mean affinity of two tasks reaches a threshold.

    Args:
        affinity: (T, T), the effect of one task on another; the mean of both directions counts.
        threshold: Smallest mean affinity of an edge. None for the largest threshold that leaves the graph connected.
    """
    tasks = len(affinity)
    mean = [[(affinity[i][j] + affinity[j][i]) / 2 for j in range(tasks)] for i in range(tasks)]

    def cut(at: float) -> Adjacency:
        return [[float(i != j and mean[i][j] >= at) for j in range(tasks)] for i in range(tasks)]

    if threshold is not None:
        return cut(threshold)
    levels = sorted({mean[i][j] for i in range(tasks) for j in range(i)}, reverse=True)
    return next((graph for graph in map(cut, levels) if connected(graph)), cut(float("inf")))


def connected(adjacency: Adjacency) -> bool:
    """Returns whether a path leads from every task to every other."""
    reached, new = {0}, {0}
    while new:
        new = {j for i in new for j, weight in enumerate(adjacency[i]) if weight > 0} - reached
        reached |= new
    return len(reached) == len(adjacency)


def check_graph(adjacency: Any, tasks: Sequence[str]) -> None:
    """Checks that a matrix is a connected graph of the tasks.

    Raises:
        MethodError: It has another size, is not symmetric, holds a negative weight or a loop, or is not connected.
    """
    size = len(tasks)
    try:
        matrix = torch.tensor(adjacency, dtype=torch.float64)
        square = matrix.shape == (size, size)
        fits = square and bool((matrix >= 0).all() and matrix.isfinite().all() and torch.equal(matrix, matrix.T))
        fits = fits and not matrix.diagonal().any()
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise MethodError(
            f"graph_mtl: a graph is a symmetric {size} x {size} matrix of finite weights >= 0 with zeros on the "
            f"diagonal, in the order of the tasks {', '.join(tasks)}. Found {adjacency!r}."
        )
    if not connected(adjacency):
        raise MethodError(
            f"graph_mtl: the graph of the tasks {', '.join(tasks)} must be connected, or groups of tasks would learn "
            f"nothing of each other. Found {adjacency!r}. Add an edge, lower `threshold`, or train groups as suites of "
            "their own."
        )


def laplacian(adjacency: Adjacency) -> Tensor:
    """Returns the Laplacian (T, T) in float64: the sums of rows on the diagonal, minus the weights elsewhere."""
    weights = torch.tensor(adjacency, dtype=torch.float64)
    return torch.diag(weights.sum(1)) - weights


def disagreement(values: Sequence[Tensor], matrix: Tensor) -> list[Tensor]:
    """Returns Σ_l a_il (w_i - w_l) for every task i.

    Args:
        values: w_i of every task, of equal shapes.
        matrix: The Laplacian (T, T).
    """
    stacked = torch.stack(tuple(values))
    return list((matrix.to(stacked) @ stacked.flatten(1)).view_as(stacked).unbind())


def exchanged(values: Sequence[Tensor], weights: Mapping[int, float]) -> list[Tensor]:
    """Returns Σ_l a_il (w_i - w_l) where the columns lie on ranks; each pair of neighbours exchanges its tensors.

    Args:
        values: Tensors of this rank's column w_i.
        weights: a_il by rank of the neighbour l.
    """
    own = torch.cat([value.detach().reshape(-1) for value in values])
    theirs = {rank: torch.empty_like(own) for rank in weights}
    sends = [dist.P2POp(dist.isend, own, rank) for rank in theirs]
    receipts = [dist.P2POp(dist.irecv, buffer, rank) for rank, buffer in theirs.items()]
    for request in dist.batch_isend_irecv([*sends, *receipts]) if theirs else []:
        request.wait()
    total = sum((weight * (own - theirs[rank]) for rank, weight in weights.items()), torch.zeros_like(own))
    parts = total.split([value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]
