"""Contract checks for methods, networks and data modules. The shipped ones pass the same checks.

`check_method` trains tiny networks in float64 with the code that the bench runs: in one process, on two ranks, and
stopped and resumed. `mtlbench check module:Class` prints the findings.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlbench import registry
from mtlbench.data import Collate, MTLDataModule, Sample
from mtlbench.method import MethodSpec
from mtlbench.runs.spec import RunSpec
from mtlbench.tasks import Task
from mtlbench.tasks.inputs import IMAGES, extent, input_fault, inputs_of, leaves, stacked
from mtlbench.testing.rank_pool import RankPool
from mtlbench.testing.toy import TOYS, sourced, toy_spec, trained
from mtlbench.training.build import build_method

TOLERANCE = 1e-9
"""Largest allowed relative difference of weights between one process and two ranks, in float64.

Training may amplify rounding: 20 steps of `mtlora` with `pcgrad` turn a change of every weight by `ROUNDING` into one
of 3e-6, and two ranks, which add in another order, then differ by 6e-7. A larger difference is therefore allowed up to
`AMPLIFIED` times what such a change causes in one process. A wrong gradient differs by far more.
"""

ROUNDING = 2.0**-51
"""Relative change of a number by rounding a few times in float64."""

AMPLIFIED = 10

STEPS, STOP = 8, 5
"""Steps of a checked run, and the one at which it is stopped: labels are absent and scores measured on both sides."""


@dataclass(frozen=True)
class Finding:
    """Outcome of one check."""

    check: str
    ok: bool
    detail: str = ""


def difference(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> float:
    """Returns the largest difference between two sets of weights, relative to the largest weight of each tensor.

    The result is infinite if a tensor is missing in one set, or an entry is finite in only one set.
    """
    if one is None or other is None or one.keys() != other.keys():
        return float("inf")
    worst = 0.0
    for name, a in one.items():
        if isinstance(a, Tensor) and a.numel():
            a, b = a.double(), other[name].double()
            if not torch.equal(a.isfinite(), b.isfinite()):
                return float("inf")
            scale = max(float(a.abs().nan_to_num().max()), 1e-12)
            worst = max(worst, float((a - b).nan_to_num().abs().max()) / scale)
    return worst


def check_method(
    target: str,
    pool: RankPool | None = None,
    arguments: Mapping[str, Any] | None = None,
    *,
    balancer: str | None = None,
    inputs: str = IMAGES,
) -> list[Finding]:
    """Runs the contract tests on a method or balancer.

    The conditions are hard on purpose: some labels are missing, one task is absent first on one rank and then on all,
    gradients are clipped, and a regulariser on global statistics is added to those of the method.

    Args:
        target: A name or ``module:Class``.
        pool: Pool of two ranks. If None, a pool is started and closed here.
        arguments: Hyper-parameters that differ from the defaults.
        balancer: Balancer for a method that takes one.
        inputs: Kind of inputs of the toy data, `mtlbench.tasks.inputs.IMAGES`, `VECTORS`, `TOKENS` or `GRAPHS`.
    """
    own = pool or RankPool(2)
    try:
        with tempfile.TemporaryDirectory() as folder:
            spec = functools.partial(
                toy_spec,
                target,
                steps=STEPS,
                evaluate_every=4,
                arguments=arguments,
                balancer=balancer,
                inputs=inputs,
                # A stopped run writes a checkpoint in any case, and is the only one that needs it.
                local={"regularise": True, "checkpoint_every": 0, "log_every": 4},
            )
            # Two checks compare with the uninterrupted run, which is trained once.
            straight = functools.cache(lambda: _trained_alone(spec(), folder + "/one"))
            checks: dict[str, Callable[[], str | None]] = {
                "parameters are shared or owned, never both": lambda: _ownership(spec(), inputs),
                "one task alone trains": lambda: _one_task(spec(steps=3, tasks=["shape"]), folder),
                "two ranks equal one process": lambda: _ranks(spec(), straight(), folder, own),
                "stop and resume is bit-identical": lambda: _resume(spec(), straight(), folder),
            }
            return [_find(name, check) for name, check in checks.items()]
    finally:
        if pool is None:
            own.close()


def _find(name: str, check: Callable[[], str | None]) -> Finding:
    try:
        fault = check()
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    return Finding(name, fault is None, fault or "")


def _ownership(spec: RunSpec, inputs: str) -> str | None:
    tasks = dict(TOYS[inputs][0].TASKS)
    method = build_method(spec.method, MethodSpec(tasks, spec.model))
    method.configure_model()
    samples = TOYS[inputs][0](ragged=False).samples("val")
    return check_network(method.network, tasks, stacked([samples[index] for index in range(4)]))


def check_network(network: Any, tasks: Mapping[str, Task], inputs: Any = None) -> str | None:
    """Checks by gradients that a network's parameters are shared or owned; returns the fault, or None.

    Args:
        network: An `MTLNetwork`.
        tasks: Its tasks.
        inputs: A batch of inputs. Default: four random images of 16 × 24 pixels.
    """
    names = list(tasks)
    shared = network.shared_parameters(names)
    owned = {name: network.task_parameters(name) for name in names}
    every = [id(p) for group in (shared, *owned.values()) for p in group]
    trainable = {id(p) for p in network.parameters() if p.requires_grad}
    if len(every) != len(set(every)) or set(every) != trainable:
        return (
            "shared_parameters and task_parameters must partition the trainable parameters. Found a parameter in no "
            "set or in several. Return each in exactly one set."
        )
    label = {id(p): name for name, p in network.named_parameters()}
    inputs = torch.randint(0, 256, (4, 3, 16, 24), dtype=torch.uint8) if inputs is None else inputs
    outputs = network(inputs, names)
    auxiliary = {name: [p for _, p in outputs.auxiliary.get(name, ())] for name in names}
    predictions = {name: [outputs.predictions[name], *auxiliary[name]] for name in names}
    for name in names:
        others = [p for other, group in owned.items() if other != name for p in group]
        found = torch.autograd.grad(_sum(predictions[name]), others, retain_graph=True, allow_unused=True)
        touched = [label[id(p)] for p, g in zip(others, found, strict=True) if g is not None and g.abs().max() > 0]
        if touched:
            return (
                f"A parameter of task_parameters must affect its own task only. {touched[0]} belongs to another task, "
                f"but {name} depends on it. Make it shared."
            )
    total = _sum([p.square() for found in predictions.values() for p in found])
    learnt = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total, learnt, allow_unused=True)
    idle = [label[id(p)] for p, g in zip(learnt, gradients, strict=True) if g is None]
    if not idle:
        return None
    return f"Every trainable parameter must reach a task, or ranks wait for it. {idle[0]} gets no gradient. Freeze it."


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.sum() for tensor in tensors]).sum()


def _one_task(spec: RunSpec, folder: str) -> str | None:
    weights = _trained_alone(spec, folder) or {}
    # A balancer's state may hold NaN for a value that is not known yet. A network's weights must be finite.
    bad = [name for name, value in weights.items() if name.startswith("network.") and not value.isfinite().all()]
    return f"Weights must be finite. {bad[0]} is not, after three steps on one task." if bad else None


def _trained_alone(spec: RunSpec, folder: str, **options: Any) -> dict[str, Tensor] | None:
    return trained(sourced(spec, folder), folder, **options)


def _ranks(spec: RunSpec, straight: Mapping[str, Any] | None, folder: str, pool: RankPool) -> str | None:
    two = pool.call(trained, sourced(spec, folder + "/two"), folder + "/two", world=2)[0]
    gap = difference(straight, two)
    limit = TOLERANCE
    if limit < gap < float("inf"):
        limit = max(limit, AMPLIFIED * difference(straight, _trained_alone(spec, folder + "/near", nudge=ROUNDING)))
    if not gap <= limit:
        return (
            f"Weights may differ by at most {limit:.0e} (relative) after {STEPS} steps. Found {gap:.1e}. Draw random "
            "numbers from ctx.generator only, and read nothing but the arguments of the hook."
        )
    return None


def _resume(spec: RunSpec, straight: Mapping[str, Any] | None, folder: str) -> str | None:
    if _trained_alone(spec, folder + "/broken", stop_at=STOP) is not None:
        return "The run must stop when asked. It went on to its last step."
    gap = difference(straight, _trained_alone(spec, folder + "/broken"))
    if not gap:
        return None
    return f"A resumed run must equal an uninterrupted one. Weights differ by {gap:.1e}. Keep state in buffers."


def check_data_module(target: str, root: str | None = None, **options: Any) -> list[Finding]:
    """Runs the contract tests on a data module.

    Args:
        target: ``module:Class``.
        root: Folder of the data.
        **options: Options of the data module.
    """
    cls = registry.load(target)
    data: MTLDataModule = cls(root, **options)
    checks = {
        "samples follow the contract": lambda: _samples(data),
        "reading and augmenting are functions of index and generator": lambda: _repeatable(data),
        "batches collate and count labels": lambda: _batch(data),
        "fingerprint is stable": lambda: (
            None if data.fingerprint() == cls(root, **options).fingerprint() else "It differs between two instances."
        ),
    }
    findings = [_find(name, check) for name, check in checks.items()]
    if findings[-1].ok and (doubt := data.unidentified()):
        findings[-1] = replace(findings[-1], detail=f"Warning: {doubt}")
    return findings


def _samples(data: MTLDataModule) -> str | None:
    for split in data.SPLITS:
        samples = data.samples(split)
        if not len(samples):
            return f"Every split must have samples. Split {split} is empty."
        for index in range(min(4, len(samples))):
            fault = _sample_fault(samples[index], data)
            if fault:
                return f"{split}[{index}]: {fault}"
    return None


def _sample_fault(sample: Sample, data: MTLDataModule) -> str | None:
    if fault := input_fault(sample, data.INPUTS):
        return f"{fault}."
    size = extent(inputs_of(sample))
    for name, target in sample["targets"].items():
        if name not in data.tasks:
            return f"Targets must be tasks of this run. Found {name!r}. Return those in self.tasks only."
        blank = data.tasks[name].blank(*size)
        if target.shape != blank.shape or target.dtype != blank.dtype:
            wanted, found = (f"{t.dtype} {tuple(t.shape)}" for t in (blank, target))
            return f"target {name} must be {wanted}. Found {found}."
    return None


def _repeatable(data: MTLDataModule) -> str | None:
    sample = data.samples("train")[0]
    again = [data.augment(data.samples("train")[0], np.random.default_rng(7)) for _ in range(2)]
    if not _equal(sample, data.samples("train")[0]):
        return "Reading must be deterministic. samples('train')[0] differs between two readings."
    for key in again[0]["targets"]:
        if not torch.equal(again[0]["targets"][key].nan_to_num(), again[1]["targets"][key].nan_to_num()):
            return f"augment gives different {key} with equal generators. Draw from the generator only."
    if _equal(*again):
        return None
    return "augment gives different inputs with equal generators. Draw from the generator only."


def _equal(one: Sample, other: Sample) -> bool:
    """Returns whether two samples have equal inputs."""
    pairs = zip(leaves(inputs_of(one)), leaves(inputs_of(other)), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _batch(data: MTLDataModule) -> str | None:
    samples = data.samples("train")
    batch = Collate(data.tasks)([samples[i] for i in range(min(4, len(samples)))])
    empty = [name for name, task in data.tasks.items() if task.count(batch["targets"][name]) != batch["counts"][name]]
    return f"Counts must equal the valid labels of the batch. Those of {', '.join(empty)} differ." if empty else None
