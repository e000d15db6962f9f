"""Routing losses of a step, computed from the statistics of all ranks, streams and micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from mtlbench.distributed import sent
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
    """Coefficients of the routing losses, each >= 0. 0 disables a loss. Losses are summed over layers.

    Attributes:
        mutual_information: Coefficient of −I(T; E).
        load_balance: Coefficient of the balance of the mixture of tasks.
        task_balance: Coefficient of the balance of each task separately.
        importance: Coefficient of CV² of the mean gates of every task.
        z: Coefficient of the mean of logsumexp(logits)².
        prior: P(t): ``"uniform"`` for 1 / T, or ``"tokens"`` for proportional to the images of the step.
        scope: ``"global"`` for statistics over all ranks, or ``"local"`` for each rank separately, as in Mod-Squad's
            official code.

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
                raise MethodError(f"{field.name}, the coefficient of a loss, must be >= 0 and finite. Found {value}.")
        if self.prior not in PRIORS:
            raise MethodError(unknown_name("prior", self.prior, PRIORS))
        if self.scope not in SCOPES:
            raise MethodError(unknown_name("scope", self.scope, SCOPES))


@dataclass(frozen=True)
class StepTables:
    """Statistics of every layer over the current step so far.

    Attributes:
        layers: Statistics by name of the layer, with rows (T, ...) in the order of the run's tasks.
        images: (T,), number of images of each task.
        present: (T,) bool, whether the task has a label on some rank.
    """

    layers: dict[str, LayerStatistics]
    images: Tensor
    present: Tensor


class StepStatistics:
    """Accumulates the statistics of one step over streams, ranks and micro-batches.

    The table of a step is the mean over its images on all ranks. Earlier micro-batches enter without gradient, so the
    first micro-batch sees its own table and the last one that of the whole batch. Every pass needs one collective.

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
        idle: Sequence[str] = (),
    ) -> StepTables | None:
        """Adds one forward pass. Returns the tables once every task of the run has been seen, else None.

        Args:
            layers: Statistics by name of the layer, with rows in the order of ``tasks``.
            tasks: Tasks of this pass.
            images: Number of images in this pass on this rank; of texts, the number of their tokens.
            counts: Valid labels per task on this rank.
            part: Index of the micro-batch within the step.
            idle: Tasks that no pass of this micro-batch predicts, the same on every rank.
        """
        if self._rows.keys() & set(tasks):
            self._rows.clear()  # A repeated task starts a new step, because the earlier one was interrupted.
        present = [float(counts.get(task, 1) > 0) for task in tasks]
        self._rows.update(zip(tasks, _pack(layers, images, present), strict=True))
        # One sample without statistics: no division by zero, and the task counts as absent.
        empty = next(iter(self._rows.values())).new_zeros(len(next(iter(self._rows.values()))))
        empty[-2] = 1
        self._rows |= {task: empty for task in idle if task not in self._rows}
        if len(self._rows) < len(self.tasks):
            return None
        own = torch.stack([self._rows.pop(task) for task in self.tasks])  # (T, columns)
        total = own if self.scope == "local" else global_sum(own)
        if part == 0:
            self._earlier.clear()
        self._earlier[part] = total.detach()
        return _unpack(total, sum(self._earlier[i] for i in sorted(self._earlier) if i < part), layers)


def _pack(layers: Mapping[str, LayerStatistics], images: int, present: Sequence[float]) -> Sequence[Tensor]:
    """Returns one row per task: all statistics times the images, then the images and the presence."""
    # Sums weighted by images can be added over ranks and micro-batches and divided once at the end.
    columns = [column for layer in layers.values() for column in _columns(layer)]
    table = images * torch.cat(columns, 1)
    tail = sent([[float(images), flag] for flag in present], table)
    return torch.cat((table, tail), 1).unbind()


def _columns(layer: LayerStatistics) -> list[Tensor]:
    return [layer.probability, layer.load, layer.importance, layer.log_normaliser.unsqueeze(1)]


def _unpack(total: Tensor, earlier: Tensor | int, like: Mapping[str, LayerStatistics]) -> StepTables:
    now = total[:, :-2] / total[:, -2:-1]
    whole = (total + earlier).detach()
    table = whole[:, :-2] / whole[:, -2:-1]
    table = table + now - now.detach()  # The value of all micro-batches, the gradient of this one.
    sizes = [column.shape[1] for layer in like.values() for column in _columns(layer)]
    parts = iter(table.split(sizes, dim=1))
    layers = {
        name: LayerStatistics(next(parts), next(parts).detach(), next(parts), next(parts).squeeze(1)) for name in like
    }
    return StepTables(layers, whole[:, -2], whole[:, -1] > 0)


def routing_losses(tables: StepTables, layers: Mapping[str, ExpertLayer], weights: RoutingWeights) -> dict[str, Tensor]:
    """Returns the weighted losses by name, summed over layers.

    Tasks without a label enter through their running tables, without gradient. Tasks never seen are left out.

    Args:
        tables: Tables of the step.
        layers: Layers by name, which hold the running tables.
        weights: Coefficients of the losses.
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
