"""`Merging`: base of methods that merge single-task networks into one, whose heads are then tuned for a short while."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlbench import registry
from mtlbench.errors import MethodError
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.metrics.relative import delta_m
from mtlbench.networks.base import MTLNetwork
from mtlbench.networks.merging import shared_values
from mtlbench.runs.plan import Ending, Plan, Result
from mtlbench.runs.spec import RunSpec


class Merging(MTLMethod):
    """Merges the shared parts of single-task networks and tunes their heads on the result.

    Args:
        spec: See `MTLMethod`.
        scale: λ of this run.
        scales: λ that the plan tries.
        realign: Share of the suite's steps in which the heads are tuned.

    Raises:
        MethodError: If a value is out of range.
    """

    ARRIVALS: ClassVar[str] = "none"

    def __init__(self, spec: MethodSpec, *, scale: float, scales: Sequence[float], realign: float):
        super().__init__(spec)
        name = type(self).__name__
        if not all(isinstance(v, (int, float)) and 0 < v < math.inf for v in (scale, *scales)):
            raise MethodError(f"{name}: scale and scales must be above 0 and finite. Found {scale} and {scales}.")
        if not 0 < realign <= 1:
            raise MethodError(f"{name}: realign, a share of the steps, must be in (0, 1]. Found {realign}.")
        self.scale = scale
        self._vectors: dict[str, Any] = {}

    def merged(self, changes: Tensor) -> Tensor:
        """Returns the change (P,) of the shared parameters for task vectors (T, P)."""
        raise NotImplementedError

    @classmethod
    def plan(cls, spec: RunSpec) -> Plan:
        """Yields the single-task runs, then one short run per λ; the best on the validation split serves all tasks."""
        alone = {task: spec.with_method(registry.record("single_task")).with_tasks(task) for task in spec.tasks}
        singles = dict(zip(spec.tasks, (yield list(alone.values())), strict=True))
        arguments = spec.method["arguments"]
        # Without a further split no λ can be chosen fairly: the default is used.
        chosen = all(result["validation"] for result in singles.values())
        scales = list(dict.fromkeys((arguments.get("scales") if chosen else None) or [arguments["scale"]]))
        runs = [_short(spec, scale).with_sources(**alone) for scale in scales]
        results = yield runs
        gains = [_gain(spec, result, singles) if chosen else None for result in results]
        known = [-math.inf if gain is None else gain for gain in gains]
        best = known.index(max(known))
        note = "" if chosen else "The data has no further split: λ is the default."
        record = {"kind": "merging", "scales": scales, "gains": gains, "scale": scales[best], "note": note}
        return Ending(dict.fromkeys(spec.tasks, runs[best].run_id), record)

    @classmethod
    def roles(cls, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Returns the single-task network of every task, named by it."""
        return {task: (task,) for task in tasks}

    def build_network(self) -> MTLNetwork:
        """Returns the dense network, of which only the heads are trained."""
        network = super().build_network()
        for parameter in network.shared_parameters(list(self.tasks)):
            parameter.requires_grad_(False)
        return network

    @torch.no_grad()
    def use_sources(self, networks: Mapping[str, MTLNetwork]) -> None:
        """Merges the shared parts into this network, which still holds the common start, and takes the heads.

        Raises:
            MethodError: If there is not one network for each task.
        """
        names = list(self.tasks)
        if set(networks) != set(names):
            raise MethodError(
                f"{type(self).__name__}: every task needs one single-task network. Tasks are {sorted(names)}, networks "
                f"{sorted(networks)}. Start the run with `mtlbench bench`, which follows the method's plan."
            )
        own = shared_values(self.network, names, trained=True)
        others = [shared_values(networks[task], [task], trained=True) for task in names]
        changes = torch.stack([torch.cat([(o[k] - p).flatten() for k, p in own.items()]) for o in others])
        sizes = [p.numel() for p in own.values()]
        for parameter, change in zip(own.values(), self.merged(changes).split(sizes), strict=True):
            parameter += change.view_as(parameter)
        for key, buffer in shared_values(self.network, names, trained=False).items():
            # Running variances must stay positive; training moves them to those of the merged network.
            buffer.copy_(torch.stack([dict(networks[task].named_buffers())[key] for task in names]).mean(0))
        for task in names:
            for mine, theirs in zip(self.network.task_modules(task), networks[task].task_modules(task), strict=True):
                mine.load_state_dict(theirs.state_dict())
        self._vectors = _described(names, changes)

    def on_train_start(self) -> None:
        """Raises a MethodError if the run was started without its plan."""
        super().on_train_start()
        if not self._vectors:
            self.use_sources({})

    def summary(self) -> dict[str, Any]:
        """Returns λ, and lengths and cosines of the task vectors."""
        return {**super().summary(), "merging": {"scale": self.scale, **self._vectors}}


def _short(spec: RunSpec, scale: float) -> RunSpec:
    """Returns the run that merges with one λ and tunes heads for a share of the steps."""
    arguments = spec.method["arguments"]
    steps = max(1, round(arguments["realign"] * spec.trainer["steps"]))
    warmup = round(spec.optimiser["warmup"] * steps / spec.trainer["steps"])
    return replace(
        spec,
        method={**spec.method, "arguments": {**arguments, "scale": scale, "scales": []}},
        trainer={**spec.trainer, "steps": steps},
        optimiser={**spec.optimiser, "warmup": warmup},
    )


def _gain(spec: RunSpec, result: Result, singles: Mapping[str, Result]) -> float | None:
    """Returns Δm over the single-task runs on the validation split, by first protocols; None if undefined."""
    first = {task: about["protocols"][0] for task, about in spec.tasks.items()}
    try:
        found = delta_m(
            {task: result["validation"][task][metric["id"]] for task, metric in first.items()},
            {task: singles[task]["validation"][task][metric["id"]] for task, metric in first.items()},
            {task: metric["higher_is_better"] for task, metric in first.items()},
        )
    except ValueError:  # A single-task score is 0.
        return None
    return found if math.isfinite(found) else None


def _described(names: Sequence[str], changes: Tensor) -> dict[str, Any]:
    lengths = torch.linalg.vector_norm(changes, dim=1, dtype=torch.float64)
    unit = changes / lengths.clamp(min=torch.finfo(changes.dtype).tiny)[:, None].to(changes)
    cosines = [[round(value, 6) for value in row] for row in (unit @ unit.T).tolist()]
    return {"lengths": dict(zip(names, lengths.tolist(), strict=True)), "cosines": cosines}
