"""Builds the method and the data module of a run from its specification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mtlbench import registry
from mtlbench.data import MTLDataModule
from mtlbench.errors import MethodError, unknown_name
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.runs.spec import RunSpec
from mtlbench.seeding import seed_of
from mtlbench.tasks import Task


def data_class(path: str, *, trusted: registry.Trusted | None = None) -> type[MTLDataModule]:
    """Return the data module that ``module:Class`` names; ``trusted`` as `registry.load` takes it.

    Raises:
        MethodError: If it cannot be imported, must not be, is no data module, or its constructor lacks the form of one.
    """
    found = registry.load(path, trusted=trusted)
    if not (isinstance(found, type) and issubclass(found, MTLDataModule)):
        raise MethodError(f"data.module must name a subclass of MTLDataModule; {path!r} is {found!r}.")
    common = registry.arguments_of(MTLDataModule).keys() - {"root"}
    if fault := registry.form_fault(found, ("root",), dict.fromkeys(common)):
        raise MethodError(f"{path}: {fault} Pass what it does not use on: `super().__init__(root, **common)`.")
    return found


def build_tasks(spec: RunSpec, module: type[MTLDataModule]) -> dict[str, Task]:
    """Return the tasks of a run with the suite's changes.

    Raises:
        MethodError: If the data module has no task of that name (any more).
    """
    known = module.tasks_of(module.stored_options(spec.data["options"]))
    for name in spec.tasks:
        if name not in known:
            raise MethodError(f"{spec.run_id}: " + unknown_name(f"task of {spec.data['module']}", name, known))
    return {
        name: known[name].with_options(scale=described["scale"], optional=described["optional"])
        for name, described in spec.tasks.items()
    }


def build(spec: RunSpec, *, trusted: registry.Trusted | None = None) -> tuple[MTLMethod, MTLDataModule]:
    """Return the method (network not built yet) and the data module of a run; ``trusted`` as `registry.load` takes it.

    Raises:
        MethodError: If a class cannot be imported, must not be, or is not of its kind.
    """
    module = data_class(spec.data["module"], trusted=trusted)
    tasks = build_tasks(spec, module)
    trainer, local = spec.trainer, spec.local
    data = module(
        local.get("root"),
        tasks=tasks,
        batch_size=trainer["batch_size"],
        steps=trainer["steps"],
        seed=spec.seed,
        workers=local.get("workers", 0),
        micro=trainer["accumulate"],
        **{**local.get("data", {}), **module.stored_options(spec.data["options"])},
    )
    data.labels = spec.data.get("labels", {})
    method_spec = MethodSpec(
        tasks,
        {**spec.model, "weights": local.get("weights")},
        spec.optimiser,
        trainer["steps"],
        data.steps_per_epoch(),
        spec.seed,
        local.get("diagnose_every", 0),
        local.get("surgery", "auto"),
    )
    method = build_method(spec.method, method_spec, trusted=trusted)
    data.batches = method.balancer.batches
    return method, data


def build_method(entry: Mapping[str, Any], spec: MethodSpec, *, trusted: registry.Trusted | None = None) -> MTLMethod:
    """Return a method from its suite entry: ``path``, ``arguments`` and, perhaps, ``balancer``."""
    cls: Any = registry.find(entry["path"], trusted=trusted)
    if not issubclass(cls, MTLMethod):
        method = MTLMethod(spec)
        method.use_balancer(cls(**entry["arguments"]))
        return method
    method = cls(spec, **entry["arguments"])
    balancer = entry.get("balancer")
    if balancer:
        rule: Any = registry.find(balancer["path"], trusted=trusted)
        method.use_balancer(rule(**balancer["arguments"]))
    return method


def build_with_network(spec: RunSpec) -> tuple[MTLMethod, MTLDataModule]:
    """Returns method and data of a run with a fresh network."""
    method, data = build(spec)
    # Every rank starts from the same weights, and every method with the same seed from the same encoder.
    torch.manual_seed(seed_of("weights", spec.seed))
    method.configure_model()
    if spec.trainer["precision"] == "64-true":
        # Lightning converts after restoring: a checkpoint would pass through float32 and come back rounded.
        method.double()
    return method, data


def switch_on(method: MTLMethod, spec: RunSpec) -> None:
    """Sets how the network runs where that changes no result beyond rounding.

    Raises:
        MethodError: If the network cannot run this way.
    """
    if spec.local.get("gradient_checkpointing"):
        method.network.recompute_encoder()
    if spec.local.get("compile"):
        method.network.compile(backend=spec.local["compile"])
