"""MAPS: modules that all tasks share, weighted in each state by a selector that knows the task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.errors import MethodError
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.networks.blocks import full_precision, per_task, pooled
from mtlbench.networks.decoder import VectorHead
from mtlbench.networks.experts.statistics import RunningTables
from mtlbench.networks.families import family_of
from mtlbench.networks.family import Model
from mtlbench.networks.mmoe import mix
from mtlbench.networks.vectors import VectorEncoder
from mtlbench.tasks import Task

FLOOR = 1e-8
"""Added to selections before the logarithm."""


class Selector(nn.Module):
    """softmax(W₃ tanh(W₂ tanh(W₁ [x; e_t]))): the weight of each module for a state x and a task t."""

    def __init__(self, features: int, tasks: int, modules: int, hidden: int) -> None:
        """Builds the selector.

        Args:
            features: Length of x.
            tasks: Number of tasks T; e_t is one-hot.
            modules: Number of modules M.
            hidden: Units of both hidden layers.
        """
        super().__init__()
        self.tasks = tasks
        self.layers = nn.Sequential(
            nn.Linear(features + tasks, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, modules),
        )

    def forward(self, x: Tensor, tasks: Sequence[int]) -> Tensor:
        """Returns the selections of some tasks in the same states, (T, B, M), at least float32.

        Args:
            x: (B, features).
            tasks: Indices of the tasks.
        """
        named = torch.eye(self.tasks, dtype=x.dtype, device=x.device)[list(tasks)]
        rows = torch.cat([x.expand(len(tasks), *x.shape), named[:, None].expand(len(tasks), len(x), self.tasks)], dim=2)
        return full_precision(self.layers(rows)).softmax(2)


class MapsNetwork(MTLNetwork):
    """M modules, a selector, and one output for all tasks or one per task.

    On vectors, every module is an encoder of its own on the observation, and the output reads all modules side by side,
    each times its selection. On maps, modules are blocks behind the shared encoder and neck, the selector reads the
    mean of the neck's map, and the output reads the sum of the modules times their selections.

    `Outputs.statistics` holds the selector's input ``"state"`` (B, F) and, by task, ``"selections"`` (B, M).

    Attributes:
        selector: None if all modules take part equally.
        running: Running mean of the selections by task.
    """

    # mypy would treat these as plain modules.
    outputs: Any
    encoder: Any
    neck: Any
    modules_of_all: Any

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        modules: int,
        hidden: int,
        shared_output: bool | None,
        select: bool,
        **model: Any,
    ) -> None:
        """Builds the network.

        Args:
            tasks: Tasks by name.
            modules: Number of modules M >= 1.
            hidden: Units of the selector's hidden layers, >= 1.
            shared_output: Whether all tasks read one output. None: if there is a selector, and all of them predict
                equally many numbers.
            select: Whether a selector weighs the modules; each has weight 1 / M otherwise.
            model: The keys of a suite's ``model`` section, see `Model`.

        Raises:
            MethodError: An argument is outside its range, or tasks cannot share their output.
            SuiteError: See `Family.parts`.
        """
        super().__init__()
        if modules < 1 or hidden < 1:
            raise MethodError(
                f"maps: modules and hidden must be at least 1. Found {modules} and {hidden}. "
                "The defaults are 10 and 128."
            )
        self.names, described = list(tasks), Model(**model)
        family = family_of(described.encoder)
        parts = family.parts(tasks, described)
        if isinstance(parts.encoder, VectorEncoder):
            more = (family.parts(tasks, described).encoder for _ in range(modules - 1))
            self.encoder, self.neck = None, None
            self.modules_of_all = nn.ModuleList([parts.encoder, *more])
            features, width = parts.encoder.features, modules * parts.encoder.channels[-1]
            heads = per_task("head", tasks, lambda name: VectorHead(width, tasks[name].channels))
        else:
            self.encoder, self.neck, heads = parts.encoder, parts.neck, parts.heads
            self.modules_of_all = nn.ModuleList(family.block(described.decoder_channels) for _ in range(modules))
            features = described.decoder_channels
        self.selector = Selector(features, len(tasks), modules, hidden) if select else None
        self.shared = self._shares(tasks, shared_output, select)
        self.outputs = nn.ModuleDict({"all": heads[self.names[0]]}) if self.shared else heads
        self.running = RunningTables(len(tasks), modules)

    def forward(self, inputs: Any, tasks: Sequence[str]) -> Outputs:
        """Predicts the named tasks; see `MTLNetwork.forward`."""
        state, bank = self._bank(inputs)
        selections = self.selections(state, tasks)
        predictions = {}
        for task in tasks:
            weights = selections[task]
            if self.encoder is None:
                read = (weights.to(bank.dtype)[:, :, None] * bank).flatten(1)
            else:
                read = mix(weights, bank)
            predictions[task] = self.outputs["all" if self.shared else task](read)
        return Outputs(predictions, bank, {"state": state, "selections": selections})

    def selections(self, state: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Returns the selections (B, M) of some tasks in the same states (B, F)."""
        count = len(self.modules_of_all)
        if self.selector is None:
            return dict.fromkeys(tasks, state.new_full((len(state), count), 1 / count))
        found = self.selector(state, [self.names.index(task) for task in tasks])
        return dict(zip(tasks, found, strict=True))

    def state(self, inputs: Any) -> Tensor:
        """Returns what the selector reads of inputs, (B, F)."""
        encoder = self.modules_of_all[0] if self.encoder is None else self.encoder
        seen = encoder.normalise(inputs)
        return seen if self.encoder is None else pooled(self.neck(self.encoder(seen)))

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the modules."""
        return list(self.modules_of_all.parameters())

    def task_modules(self, task: str) -> Sequence[nn.Module]:
        """Returns the task's output, if it has one of its own."""
        return [] if self.shared else [self.outputs[task]]

    def _bank(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """Returns the state, and the features of all modules, (B, M, C) or (B, M, C, h, w)."""
        if self.encoder is None:
            state = self.state(inputs)
            return state, torch.stack([module(state)[-1] for module in self.modules_of_all], 1)
        shared = self.neck(self.encoder(self.encoder.normalise(inputs)))
        return pooled(shared), torch.stack([module(shared) for module in self.modules_of_all], 1)

    @staticmethod
    def _shares(tasks: Mapping[str, Task], wanted: bool | None, select: bool) -> bool:
        forms = {(task.channels, task.dense, task.per_token) for task in tasks.values()}
        if wanted and len(forms) > 1:
            found = ", ".join(f"{name} {task.channels}" for name, task in tasks.items())
            raise MethodError(f"Tasks share an output if they predict equally many numbers. Found {found}.")
        if wanted and not select and len(tasks) > 1:
            raise MethodError("Without a selector, outputs of their own tell tasks apart. Drop shared_output: true.")
        return select and len(forms) == 1 if wanted is None else wanted


# ---- regularisers ---------------------------------------------------------------------------------------------------


def sparsity(s: Tensor) -> Tensor:
    """Returns the mean of −s^(1 / ln M) ln(s + 1e-8) over states and modules; 0 for one module.

    Args:
        s: (B, M) selections.
    """
    count = s.shape[1]
    if count == 1:
        return s.sum() * 0
    # At s = 0 the power has an infinite slope.
    return -((s + FLOOR) ** (1 / math.log(count)) * (s + FLOOR).log()).mean()


def sharing(s: Tensor) -> Tensor:
    """Returns the mean squared difference of the selections of two tasks in one state; 0 for one task.

    Args:
        s: (T, B, M) selections of all tasks in the same states.
    """
    count = len(s)
    if count == 1:
        return s.sum() * 0
    # Σ over pairs of (a − b)² is T Σ a² − (Σ a)².
    pairs = count * s.square().sum(0) - s.sum(0).square()
    return pairs.mean() / (count * (count - 1) / 2)


def exploration(total: Tensor) -> Tensor:
    """Returns Var / Mean² of the selections of the modules, summed over states; 0 if all are used equally.

    Args:
        total: (M,).
    """
    return total.var(correction=0) / total.mean().square()


def smoothness(now: Tensor, before: Tensor) -> Tensor:
    """Returns the mean squared difference of selections (B, M) from those in the previous states."""
    return (now - before).square().mean()
