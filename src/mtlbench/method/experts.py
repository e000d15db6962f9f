"""`ExpertMethod`: base of the methods whose network has sparse experts."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mtlbench.data import Batch
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.method.optimisers import set_apart
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.experts import mutual_information
from mtlbench.networks.experts.mlp import STACKED_BIASES
from mtlbench.networks.experts.network import ExpertNetwork
from mtlbench.networks.experts.routing_losses import RoutingWeights, StepStatistics, StepTables, routing_losses
from mtlbench.networks.experts.trunk import ExpertOptions
from mtlbench.runs import keys
from mtlbench.tasks.inputs import length


class ExpertMethod(MTLMethod):
    """Builds a network with experts, adds losses on their routing, and records their use.

    Args:
        spec: See `MTLMethod`.
        options: Where experts are, and how tokens reach them.
        weights: Losses on routing.
    """

    def __init__(self, spec: MethodSpec, options: ExpertOptions, weights: RoutingWeights):
        super().__init__(spec)
        self.options, self.weights = options, weights
        self._statistics = StepStatistics(list(self.tasks), weights.scope)
        self._tables: StepTables | None = None

    def build_network(self) -> MTLNetwork:
        """Returns the sparse network."""
        return ExpertNetwork(self.tasks, self.options, **self.spec.model)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the groups of every method, with the stacked biases of experts exempt from weight decay."""
        layers = cast(ExpertNetwork, self.network).layers.values()
        # Stacked, the biases (E, d) have two dimensions, and the default takes them for matrices.
        biases = [p for layer in layers for name, p in layer.experts.named_parameters() if name in STACKED_BIASES]
        return set_apart(super().parameter_groups(), biases, weight_decay=0.0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Runs tasks one by one if each needs its own backward pass, otherwise together."""
        looks = self.diagnoses(self.trainer.global_step)
        cast(ExpertNetwork, self.network).separate = looks or self.update.needs.hook is not None
        return super().training_step(batch, batch_idx)

    def regularisation(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Returns the losses on routing, once all tasks have run."""
        statistics, layers = outputs.statistics["experts"], cast(ExpertNetwork, self.network).layers
        part, last = self._part()
        tasks = list(outputs.predictions)
        # Ranks and micro-batches count by their tokens. Images have equally many of them.
        size = batch.get("tokens", length(batch))
        tables = self._statistics.add(statistics, tasks, size, batch["counts"], part, batch.get("idle", ()))
        if tables is None:
            return {}
        losses = routing_losses(tables, layers, self.weights)
        if part == last:
            self._tables = tables
            for name, table in tables.layers.items():
                layers[name].running.update(table.probability.detach(), table.load, tables.present)
        return losses

    def diagnostics(self) -> dict[str, Tensor]:
        """Returns per layer the share of choices of every expert over all tasks, and the mutual information."""
        if self._tables is None:
            return {}
        found = {}
        for name, table in self._tables.layers.items():
            found[keys.INFORMATION.key(layer=name)] = mutual_information(table.probability.detach())
            shares = table.load.mean(0)
            found |= {keys.LOAD.key(layer=name, expert=expert): share for expert, share in enumerate(shares)}
        return found

    def summary(self) -> dict[str, Any]:
        """Returns the balancer's summary and the running tables of every layer, for the report on experts."""
        layers = cast(ExpertNetwork, self.network).layers
        tables = {
            name: {"probability": _rounded(layer.running.probability), "load": _rounded(layer.running.load)}
            for name, layer in layers.items()
        }
        top_k = {name: layer.router.top_k for name, layer in layers.items()}
        return {**super().summary(), "experts": {"tasks": list(self.tasks), "top_k": top_k, "layers": tables}}

    def _part(self) -> tuple[int, int]:
        """Returns the index of the micro-batch within the step, and of its last one."""
        if self._trainer is None:
            return 0, 0
        return self._state.micro_index, self.trainer.accumulate_grad_batches - 1


def _rounded(table: Tensor) -> list[list[float]]:
    return [[round(value, 6) for value in row] for row in table.to(torch.float64).tolist()]
