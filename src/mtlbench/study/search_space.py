"""What the search of a row may change: its hyper-parameters, learning rate and weight decay. Needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mtlbench import registry
from mtlbench.registry import PerTask
from mtlbench.runs.spec import RunSpec

DECADE = 10.0
"""Learning rate and weight decay are searched from a tenth of the suite's value to ten times that value."""

OPTIMISER = ("lr", "weight_decay")


@dataclass(frozen=True)
class Dimension:
    """One value that a search may change.

    Attributes:
        part: Where it belongs: ``"optimiser"``, ``"method"`` or ``"balancer"``.
        key: Its name there.
        declared: Its value in trial 0.
        choices: Values to choose from; empty if it is log-uniform.
        low, high: Bounds of a log-uniform value.
        task: Task whose number in a list it is, ``""`` if it is no part of a list.
    """

    part: str
    key: str
    declared: Any
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    task: str = ""

    def __str__(self) -> str:
        if self.choices:
            return " | ".join(map(str, self.choices))
        return f"log-uniform in [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Space:
    """The search space of a row: dimensions by name, for example ``lr``, ``cagrad.c`` or ``fixed.weights[depth]``."""

    dimensions: Mapping[str, Dimension]

    @property
    def declared(self) -> dict[str, Any]:
        """The values of trial 0, as Optuna counts them."""
        return {name: d.choices.index(d.declared) if d.choices else d.declared for name, d in self.dimensions.items()}

    def distributions(self) -> dict[str, Any]:
        """Returns the space in Optuna's terms. Choices are numbered, since they may be of any type."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        return {
            name: CategoricalDistribution(range(len(d.choices)))
            if d.choices
            else FloatDistribution(d.low, d.high, log=True)
            for name, d in self.dimensions.items()
        }

    def values(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Returns values in our terms, rounded to four figures: the last bits of a logarithm depend on the machine."""
        return {
            name: d.choices[parameters[name]] if d.choices else float(f"{parameters[name]:.4g}")
            for name, d in self.dimensions.items()
        }

    def applied(self, spec: RunSpec, values: Mapping[str, Any], number: int) -> RunSpec:
        """Returns a run with the values of a trial; trial 0 is the run as it is.

        The label of a run is that of its row. All runs that its plan derives from it have these values, too.
        """
        if number == 0:
            return spec
        changed: dict[str, dict[str, Any]] = {"optimiser": {}, "method": {}, "balancer": {}}
        lists: dict[tuple[str, str], list[float]] = {}
        for name, dimension in self.dimensions.items():
            if dimension.task:
                lists.setdefault((dimension.part, dimension.key), []).append(values[name])
            else:
                changed[dimension.part][dimension.key] = values[name]
        for (part, key), weights in lists.items():
            changed[part][key] = [weight * len(weights) / sum(weights) for weight in weights]
        method = _rewritten(spec.method, changed["method"])
        if "balancer" in spec.method:
            method = {**method, "balancer": _rewritten(spec.method["balancer"], changed["balancer"])}
        return replace(spec, method=method, optimiser={**spec.optimiser, **changed["optimiser"]})


def space_of(spec: RunSpec, over: Collection[str], given: Collection[str]) -> Space:
    """Returns the search space of a row.

    Args:
        spec: A run of it.
        over: What the suite names: ``method``, ``lr``, ``weight_decay``. Weights per task are always searched.
        given: Hyper-parameters that the suite gives, as ``method.<name>`` or ``balancer.<name>``; they stay.
    """
    found = {
        key: Dimension("optimiser", key, value := float(spec.optimiser[key]), low=value / DECADE, high=value * DECADE)
        for key in OPTIMISER
        if key in over
    }
    balancer: Mapping[str, Any] | None = spec.method.get("balancer")
    for part, record in (("method", spec.method), *((("balancer", balancer),) if balancer else ())):
        for dimension in _declared(part, record, list(spec.tasks)):
            if f"{part}.{dimension.key}" in given or not (dimension.task or "method" in over):
                continue
            inside = f"[{dimension.task}]" if dimension.task else ""
            found[f"{record['name']}.{dimension.key}{inside}"] = dimension
    return Space(found)


def _declared(part: str, record: Mapping[str, Any], tasks: Sequence[str]) -> Iterator[Dimension]:
    """Yields the dimensions that a method or balancer declares."""
    cls: Any = registry.find(record["path"])
    defaults = registry.defaults(cls, record["arguments"])
    for key, space in cls.SEARCH.items():
        if isinstance(space, PerTask):
            for task in tasks:
                yield Dimension(part, key, 1.0, low=space.low, high=space.high, task=task)
        else:
            others = [value for value in space if value != defaults[key]]
            yield Dimension(part, key, defaults[key], (defaults[key], *others))


def _rewritten(record: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a method's part of an identity with other hyper-parameters."""
    if not changed:
        return dict(record)
    arguments = {**record["arguments"], **changed}
    return {**record, **registry.record(record["path"], **arguments)}
