"""What a run takes from finished runs of the same store: initial weights, or whole networks to read.

A run may start from the weights of another one. A new task's gates may start from those of a related task.

``RunSpec.start`` holds ``run`` (id, in the same store), ``hash`` (of its specification), ``related`` (a task of that
run, or None) and ``freeze`` (whether routers stay as they are).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtlbench.errors import MethodError, StoreError
from mtlbench.method import MTLMethod
from mtlbench.networks.base import MTLNetwork
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from mtlbench.training import checkpoint

NETWORK = "network."
"""Prefix of the network's weights in a checkpoint."""


def begin(method: MTLMethod, spec: RunSpec, root: Path, build: Callable[[RunSpec], MTLMethod]) -> None:
    """Load the weights of a finished run into the network of a new run; heads of new tasks stay fresh.

    The weights are first loaded into a network with the tasks of both runs, in which each new task inherits the gates
    of the related task. What the new run's network has in common with it is then copied.

    Args:
        method: Method of the new run, with its network.
        spec: The new run, with ``start``.
        root: Folder of both runs.
        build: Returns the method of a specification with its network.

    Raises:
        StoreError: If the other run is missing, not done, or not the one meant.
        MethodError: If the networks do not fit.
    """
    start: Mapping[str, Any] = spec.start or {}
    source, weights = _read(root, start)
    new = [task for task in spec.tasks if task not in source.tasks]
    both = build(replace(source, tasks={**source.tasks, **spec.tasks})).network
    _copy(weights, both, allowed=_names(both, [both.task_modules(task) for task in new]))
    gates: set[str] = set()
    if start.get("related"):
        gates = _names(both, [both.task_modules(task)[1:] for task in new])
        for task in new:
            both.inherit(task, start["related"])
    known = {name: value for name, value in both.state_dict().items() if name in weights or name in gates}
    network = method.network
    _copy(known, network, allowed=_names(network, [network.task_modules(task) for task in new]))
    if start.get("freeze"):
        for router in network.routers:
            router.requires_grad_(requires_grad=False)
        method.configure_model()  # Balancing works on the parameters that are still trained.


def networks(
    sources: Mapping[str, Mapping[str, str]], root: Path, build: Callable[[RunSpec], MTLMethod]
) -> dict[str, MTLNetwork]:
    """Returns the trained networks of other runs by role, frozen and in evaluation mode, on the CPU.

    Args:
        sources: ``RunSpec.sources``.
        root: Folder of the runs.
        build: Returns the method of a specification with its network.

    Raises:
        StoreError: If a run is missing, not done, or not the one meant.
    """
    found = {}
    for role, source in sources.items():
        spec, weights = _read(root, source)
        network = build(spec).network
        network.load_state_dict(weights)
        found[role] = network.requires_grad_(requires_grad=False).eval()
    return found


def _read(root: Path, start: Mapping[str, Any]) -> tuple[RunSpec, dict[str, Tensor]]:
    folder = RunFolder(root, start["run"])
    source, result = folder.spec(), folder.result()
    if source is None or result is None or source.hash != start["hash"]:
        found = _hindrance(folder, source, start["hash"])
        raise StoreError(f"A run that builds on another one needs it to be done. {folder.path}: {found}")
    weights = checkpoint.final(folder.path, result)["state_dict"]
    return source, {k.removeprefix(NETWORK): v for k, v in weights.items() if k.startswith(NETWORK)}


def _hindrance(folder: RunFolder, source: RunSpec | None, wanted: str) -> str:
    """Return why a run cannot be built on, with the remedy."""
    if source is not None and source.hash != wanted:
        return "another run of that name. Run the bench again in an empty results folder."
    state = folder.state()
    if state == "done":
        return "its spec.json is absent or damaged. Run the bench again, which writes it anew and trains nothing."
    if state != "failed":
        return f"{state}. Run the bench again: missing runs are trained first."
    if damage := folder.damage():
        return f"failed: {folder.told(damage)}"
    reason = str((folder.error() or {}).get("message", "")).partition("\n")[0] or "no reason is known."
    return f"failed: {reason} Run the bench again with --retry (RETRY=1), which trains it anew."


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], network: nn.Module, *, allowed: set[str]) -> None:
    """Copy by name. Every parameter must get a value, except those in ``allowed``.

    Buffers of another shape, such as statistics with a row per task, stay as they are.
    """
    own = network.state_dict()
    fit = {name for name, value in own.items() if name in values and values[name].shape == value.shape}
    lacking = dict(network.named_parameters()).keys() - fit - allowed
    if lacking:
        raise MethodError(
            f"A warm start needs the same network in both runs. {', '.join(sorted(lacking)[:3])}: missing in the other "
            "run, or of another shape there. Give both runs the same model."
        )
    for name in fit:
        own[name].copy_(values[name])


def _names(network: nn.Module, groups: Iterable[Iterable[nn.Module]]) -> set[str]:
    """Returns the names of all parameters and buffers of some modules of a network; one may have several."""
    owned = {id(v) for modules in groups for m in modules for v in m.state_dict(keep_vars=True).values()}
    return {name for name, value in network.state_dict(keep_vars=True).items() if id(value) in owned}
