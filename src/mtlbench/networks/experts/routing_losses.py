"""Routing losses of a step: gathers statistics of all ranks, streams and micro-batches, then computes the losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from mtlbench.errors import MethodError, unknown_name
from mtlbench.networks.experts import (
    ExpertLayer,
    LayerStatistics,
    global_sum,
    importance_variation,
    load_balance,
    mutual_information,
    task_balance,
)

PRIORS = ("uniform", "tokens")
SCOPES = ("global", "local")


@dataclass(frozen=True)
class RoutingWeights:
    """Coefficients of the routing losses, each >= 0; 0 disables a loss. Losses are summed over layers.

    Attributes:
        mutual_information: Of −I(T; E).
        load_balance: Of the balance of the mixture of tasks.
        task_balance: Of the balance of every task by itself.
        importance: Of CV² of the mean gates of every task.
        z: Of the mean of logsumexp(logits)².
        prior: P(t): ``"uniform"`` 1 / T, or ``"tokens"`` in proportion to the images of the step.
        scope: ``"global"`` over all ranks; ``"local"`` each rank by itself, as Mod-Squad's official code.

    Raises:
        MethodError: A value is outside its range.
    """

    mutual_information: float = 0.0
    load_balance: float = 0.0
    task_balance: float = 0.0
    importance: float = 0.0
    z: float = 0.0
    prior: str = "uniform"
    scope: str = "global"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) and not 0 <= value < float("inf"):
                raise MethodError(f"{field.name}, the coefficient of a loss, must be >= 0 and finite; found {value}.")
        if self.prior not in PRIORS:
            raise MethodError(unknown_name("prior", self.prior, PRIORS))
        if self.scope not in SCOPES:
            raise MethodError(unknown_name("scope", self.scope, SCOPES))


@dataclass(frozen=True)
class StepTables:
    """Statistics of every layer over the step so far.

    Attributes:
        layers: By name; rows (T, ...) in the order of the run's tasks.
        images: (T,), images that each task has seen.
        present: (T,) bool, tasks with a label on some rank.
    """

    layers: dict[str, LayerStatistics]
    images: Tensor
    present: Tensor


class StepStatistics:
    """Adds up the statistics of one step over streams, ranks and micro-batches.

    The table of a step is the mean over its images on all ranks. Earlier micro-batches enter without gradient, so the
    first one sees its own table and the last one that of the whole batch. Every pass needs one collective.

    Args:
        tasks: Names of the run's tasks, in order.
        scope: See `RoutingWeights`.
    """

    def __init__(self, tasks: Sequence[str], scope: str = "global"):
        self.tasks, self.scope = list(tasks), scope
        self._rows: dict[str, Tensor] = {}
        self._earlier: dict[int, Tensor] = {}

    def add(
        self,
        layers: Mapping[str, LayerStatistics],
        tasks: Sequence[str],
        images: int,
        counts: Mapping[str, int],
        part: int,
    ) -> StepTables | None:
        """Adds one forward pass; returns the tables once every task of the run has been seen.

        Args:
            layers: By name, rows in the order of ``tasks``.
            tasks: Of this pass.
            images: In this pass on this rank.
            counts: Valid labels per task on this rank.
            part: Index of the micro-batch within the step.
        """
        if self._rows.keys() & set(tasks):
            self._rows.clear()  # A repeated task begins another step: the earlier one was interrupted.
        present = [float(counts.get(task, 1) > 0) for task in tasks]
        self._rows.update(zip(tasks, _pack(layers, images, present), strict=True))
        if len(self._rows) < len(self.tasks):
            return None
        own = torch.stack([self._rows.pop(task) for task in self.tasks])  # (T, columns)
        total = own if self.scope == "local" else global_sum(own)
        if part == 0:
            self._earlier.clear()
        self._earlier[part] = total.detach()
        return _unpack(total, sum(self._earlier[i] for i in sorted(self._earlier) if i < part), layers)


def _pack(layers: Mapping[str, LayerStatistics], images: int, present: Sequence[float]) -> Sequence[Tensor]:
    """Returns one row per task: all statistics times images, images, presence."""
    columns = [column for layer in layers.values() for column in _columns(layer)]
    table = images * torch.cat(columns, 1)
    tail = table.new_tensor([[float(images), flag] for flag in present])
    return torch.cat((table, tail), 1).unbind()


def _columns(layer: LayerStatistics) -> list[Tensor]:
    return [layer.probability, layer.load, layer.importance, layer.log_normaliser.unsqueeze(1)]


def _unpack(total: Tensor, earlier: Tensor | int, like: Mapping[str, LayerStatistics]) -> StepTables:
    now = total[:, :-2] / total[:, -2:-1]
    whole = (total + earlier).detach()
    table = whole[:, :-2] / whole[:, -2:-1]
    table = table + now - now.detach()  # the value of all micro-batches so far, the gradient of this one
    sizes = [column.shape[1] for layer in like.values() for column in _columns(layer)]
    parts = iter(table.split(sizes, dim=1))
    layers = {
        name: LayerStatistics(next(parts), next(parts).detach(), next(parts), next(parts).squeeze(1)) for name in like
    }
    return StepTables(layers, whole[:, -2], whole[:, -1] > 0)


def routing_losses(tables: StepTables, layers: Mapping[str, ExpertLayer], weights: RoutingWeights) -> dict[str, Tensor]:
    """Returns the weighted losses by name, summed over layers.

    Tasks without a label enter through their running tables, without gradient; tasks never seen are left out.

    Args:
        tables: Of the step.
        layers: With running tables, by name.
        weights: Coefficients.
    """
    here = _prior(tables, tables.present, weights)
    totals: dict[str, Tensor] = {}
    for name, statistics in tables.layers.items():
        running = layers[name].running
        known = _prior(tables, tables.present | running.seen, weights)
        filled = _fill(statistics, tables.present, running.probability, running.load)
        terms: dict[str, Callable[[], Tensor]] = {
            "mutual_information": partial(_negative_information, filled.probability, known),
            "load_balance": partial(load_balance, filled.probability, filled.load, known),
            "task_balance": partial(task_balance, statistics.probability, statistics.load, here),
            "importance": partial(importance_variation, statistics.importance, here),
            "z": partial(torch.dot, here, statistics.log_normaliser),
        }
        for key, term in terms.items():
            if getattr(weights, key):
                totals[key] = totals.get(key, 0) + getattr(weights, key) * term()
    return totals


def _negative_information(table: Tensor, prior: Tensor) -> Tensor:
    return -mutual_information(table, prior)


def _prior(tables: StepTables, usable: Tensor, weights: RoutingWeights) -> Tensor:
    shares = usable.to(tables.images)
    if weights.prior == "tokens":
        shares = shares * tables.images
    return shares / shares.sum().clamp_min(1e-30)


def _fill(statistics: LayerStatistics, present: Tensor, probability: Tensor, load: Tensor) -> LayerStatistics:
    here = present.unsqueeze(1)
    return replace(
        statistics,
        probability=torch.where(here, statistics.probability, probability.to(statistics.probability)),
        load=torch.where(here, statistics.load, load.to(statistics.load)),
    )
