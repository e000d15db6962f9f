"""One agent of a graph of tasks: the column of one task in a process of its own, which talks to its neighbours only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlbench import distributed
from mtlbench.errors import MethodError
from mtlbench.method.optimisers import build_optimiser
from mtlbench.networks.blocks import full_precision
from mtlbench.networks.graph import Adjacency, GraphNetwork, check_graph, exchanged
from mtlbench.tasks import Task


class GraphAgent:
    """Trains the column of one task; rank i of the process group holds task i of the graph.

    After every step, each pair of neighbours exchanges the parameters of its trunks point to point. No other process
    learns of them, and no process sees the data or the loss of another. With equal batches, the columns equal those of
    `graph_mtl` in one process up to rounding.

    Example, on every rank of a gloo group::

        agent = GraphAgent(network, task, [[0, 1], [1, 0]], ["depth", "normals"], optimiser, eta=1.0)
        for image, target in batches:
            agent.step(image, target)
    """

    def __init__(
        self,
        network: GraphNetwork,
        task: Task,
        adjacency: Adjacency,
        tasks: Sequence[str],
        optimiser: Mapping[str, Any],
        *,
        eta: float = 1.0,
        form: str = "atc",
    ) -> None:
        """Builds the agent.

        Args:
            network: Network of this rank's task alone; equal trunks on all ranks.
            task: This rank's task.
            adjacency: (T, T) weights a_il of the edges.
            tasks: Names of all tasks; task i is that of rank i.
            optimiser: Section ``optimiser`` of a suite. Its rate stays constant.
            eta: Strength η of the pull.
            form: ``"atc"`` or ``"penalty"``, see `graph_mtl`.

        Raises:
            MethodError: There is not one rank per task, or the matrix is no connected graph.
        """
        check_graph(adjacency, tasks)
        if distributed.world_size() != len(tasks):
            raise MethodError(
                f"Every task of a graph needs a rank of its own. Found {distributed.world_size()} ranks and "
                f"{len(tasks)} tasks. Start one process per task."
            )
        row = adjacency[distributed.rank()]
        self.network, self.task, self.eta, self.form = network, task, eta, form
        self.weights = {rank: weight for rank, weight in enumerate(row) if weight > 0}
        every = [p for p in network.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in every if p.ndim > 1]},
            {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser, self.rate = build_optimiser(groups, optimiser), optimiser["lr"]

    def step(self, image: Tensor, target: Tensor) -> Tensor:
        """Takes one step and returns the scaled mean loss () before it.

        Args:
            image: (B, 3, H, W) uint8.
            target: The task's target of these images.
        """
        name, trunk = self.task.name, self.network.trunk(self.task.name)
        self.optimiser.zero_grad()
        prediction = self.network(image, [name]).predictions[name]
        count = self.task.count(target)
        loss = self.task.loss(full_precision(prediction), target) * (self.task.scale / max(count, 1))
        if count:
            loss.backward()
        if self.form == "penalty":
            for parameter, pull in zip(trunk, exchanged(trunk, self.weights), strict=True):
                pull = self.eta * pull
                parameter.grad = pull if parameter.grad is None else parameter.grad + pull
        self.optimiser.step()
        if self.form == "atc":
            with torch.no_grad():
                for parameter, pull in zip(trunk, exchanged(trunk, self.weights), strict=True):
                    parameter.sub_(pull, alpha=self.rate * self.eta)
        return loss.detach()
