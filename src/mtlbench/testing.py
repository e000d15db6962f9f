"""Contract checks for methods, networks and data modules: yours and the shipped ones pass the same.

`check_method` trains tiny networks in float64 through the very code that the bench runs, in one process and on two
ranks, stopped and resumed. `mtlbench check module:Class` prints what they find.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mtlbench import checkpoint, registry
from mtlbench.callbacks import EndOfStep
from mtlbench.data import Collate, MTLDataModule, Sample, Samples, StepBatches, seed_of
from mtlbench.method import DEFAULT_OPTIMISER, MethodSpec, MTLMethod
from mtlbench.networks.base import Outputs
from mtlbench.networks.experts import global_mean
from mtlbench.plan import RunSpec
from mtlbench.rank_pool import RankPool
from mtlbench.run import build_method, train
from mtlbench.store import RunFolder
from mtlbench.tasks import Classification, Depth, Regression, SemanticSegmentation, Task

TOLERANCE = 1e-9
"""Largest relative difference of weights between one process and two ranks, in float64."""


@dataclass(frozen=True)
class Finding:
    """Outcome of one check."""

    check: str
    ok: bool
    detail: str = ""


class ToyData(MTLDataModule):
    """Random images, 16 × 24 pixels, with labels that are ragged on purpose.

    Sample p of a step's batch goes to rank p mod 2 when there are two. In every fourth step task ``shape`` has no
    label on odd p, so that it is absent on one rank; in the step after that it has none at all.

    Args:
        ragged: Leave labels out; otherwise all are there.
        size: Training samples.
        **common: See `MTLDataModule`.
    """

    TASKS: ClassVar[Mapping[str, Task]] = {
        "kind": Classification("kind", classes=3),
        "shape": SemanticSegmentation("shape", classes=4, protocol="shape_miou@1"),
        "far": Depth("far", scale=2.0),
        "mean": Regression("mean"),
    }

    def __init__(self, root: str | None = None, *, ragged: bool = True, size: int = 48, **common: Any):
        super().__init__(root, **common)
        self.ragged, self.size = ragged, size

    def samples(self, split: str) -> Samples:
        """Returns samples that are a function of split and index."""
        return _ToySamples(split, self.size if split == "train" else 7, self)

    def train_dataloader(self) -> DataLoader:
        """Returns the data in order, so that labels can be absent on a chosen rank and step."""
        trainer: Any = self.trainer
        samples = _ToySamples("train", self.steps * self.batch_size, self)
        batches = _InOrder(
            len(samples), self.batch_size, self.steps, self.seed, start=trainer.global_step, micro=self.micro,
            rank=trainer.global_rank, world=trainer.world_size, batches=self.batches,
        )  # fmt: skip
        return DataLoader(samples, batch_sampler=batches, collate_fn=Collate(self.tasks))  # type: ignore[arg-type]


class _InOrder(StepBatches):
    def __iter__(self) -> Any:
        for step in range(self.start, self.steps):
            batch = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
            for part in self.parts(batch):
                yield [int(index) for index in part]


class _ToySamples:
    def __init__(self, split: str, size: int, data: ToyData):
        self.split, self.size, self.data = split, size, data

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        generator = np.random.default_rng(seed_of("toy", self.split, index))
        image = generator.integers(0, 256, (3, 16, 24), dtype=np.uint8)
        bright = image.mean(0)
        kind = int(bright.mean() * 7) % 3
        shape = np.digitize(bright, [90, 128, 160]).astype(np.int64)
        targets = {
            "kind": torch.tensor(kind),
            "shape": torch.from_numpy(shape),
            "far": torch.from_numpy((1 + bright / 128)[None].astype(np.float32)),
            "mean": torch.tensor(float(bright.mean() / 32)),
        }
        if self.data.ragged and self.split == "train":
            targets = {name: value for name, value in targets.items() if self._labelled(name, index, generator)}
            if "far" in targets:
                targets["far"][:, : index % 9] = 255.0
        kept = {name: value for name, value in targets.items() if name in self.data.tasks}
        return {"image": torch.from_numpy(image), "targets": kept, "id": f"{self.split}-{index}"}

    def _labelled(self, name: str, index: int, generator: np.random.Generator) -> bool:
        step, position = divmod(index, self.data.batch_size)
        if name == "shape" and step % 4 == 2:
            return position % 2 == 0
        if name == "shape" and step % 4 == 3:
            return False
        return bool(generator.random() < 0.8)


def toy_spec(target: str, *, steps: int = 20, arguments: Mapping[str, Any] | None = None, **changes: Any) -> RunSpec:
    """Returns a run of a method or balancer on the toy data, in float64, with clipping.

    Args:
        target: A name or ``module:Class``.
        steps: Optimiser steps.
        arguments: Hyper-parameters that differ from the defaults.
        **changes: Entries of the trainer section, and ``tasks``, ``ragged``, ``seed``, ``balancer``, ``local``.
    """
    cls = registry.find(target)
    names = changes.pop("tasks", list(ToyData.TASKS))
    balancer = changes.pop("balancer", None)
    method: dict[str, Any] = {
        "name": target.rpartition(":")[2],
        "path": target,
        "version": 1,
        "arguments": dict(arguments or {}),
    }
    if balancer:
        method["balancer"] = {"name": balancer, "path": balancer, "arguments": {}}
    registry.check_arguments(target, cls, method["arguments"])
    local = {"checkpoint_every": 5, "log_every": 1, "diagnose_every": 0, "workers": 0, "examples": 0}
    return RunSpec(
        suite="check", label=target, seed=changes.pop("seed", 0), method=method,
        tasks={name: ToyData.TASKS[name].describe() for name in names},
        data={"module": "mtlbench.testing:ToyData", "options": {"ragged": changes.pop("ragged", True)}},
        model={
            "encoder": "vit_tiny_patch16_224", "image_size": [16, 24], "decoder_channels": 8,
            "encoder_options": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
        },
        optimiser={**DEFAULT_OPTIMISER, "lr": 0.01},
        local={**local, **changes.pop("local", {})},
        trainer={
            "steps": steps, "batch_size": 8, "accumulate": 1, "precision": "64-true", "clip": 0.5, "evaluate_every": 7,
            "selection": "last", **changes,
        },
    )  # fmt: skip


def trained(spec: RunSpec, folder: str, *, world: int = 1, stop_at: int | None = None) -> dict[str, Tensor] | None:
    """Trains a run in this process (one of ``world`` ranks); returns its final weights, or None if stopped.

    Args:
        spec: The run. With ``regularise`` in its local section the method gets a further regulariser.
        folder: Root of the store; an interrupted run in it is resumed.
        world: Number of ranks.
        stop_at: Ask to stop at this step, as a signal would.
    """
    run = RunFolder(Path(folder), spec.run_id)
    run.path.mkdir(parents=True, exist_ok=True)
    ends: list[EndOfStep] = []
    stop = (lambda: bool(ends) and ends[0].step >= stop_at) if stop_at is not None else (lambda: False)
    with _regularised(registry.find(spec.method["path"]), active=spec.local.get("regularise", False)):
        done = train(spec, run, world=world, stop=stop, note=ends.append)
    return checkpoint.load(run.path / "final.ckpt")["state_dict"] if done else None


@contextmanager
def _regularised(target: Any, *, active: bool) -> Iterator[None]:
    """Gives a method a further regulariser: the squared mean of every prediction, over the batches of all ranks."""
    cls = target if issubclass(target, MTLMethod) else MTLMethod
    own, inherited = cls.regularisation, "regularisation" not in vars(cls)

    def regularisation(self: MTLMethod, outputs: Outputs, batch: Any) -> dict[str, Tensor]:
        means = torch.stack([prediction.mean() for prediction in outputs.predictions.values()])
        return {**own(self, outputs, batch), "squared mean": 0.1 * global_mean(means).square().sum()}

    if not active:
        yield
        return
    cls.regularisation = regularisation  # type: ignore[method-assign]
    try:
        yield
    finally:
        if inherited:
            del cls.regularisation
        else:
            cls.regularisation = own  # type: ignore[method-assign]


def difference(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> float:
    """Returns the largest difference of two sets of weights, relative to the largest weight of each tensor.

    Infinite where one has no such tensor, or a number where the other has none.
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
    target: str, pool: RankPool | None = None, arguments: Mapping[str, Any] | None = None, *,
    balancer: str | None = None,
) -> list[Finding]:  # fmt: skip
    """Runs the contract tests on a method or balancer.

    Labels are ragged, one task is absent on one rank and then on all, clipping is on, and a regulariser on global
    statistics is added to those of the method.

    Args:
        target: A name or ``module:Class``.
        pool: Two ranks to use; started and closed here if not given.
        arguments: Hyper-parameters that differ from the defaults.
        balancer: Balancer to go with a method that takes one.
    """
    own = pool or RankPool(2)
    try:
        with tempfile.TemporaryDirectory() as folder:
            spec = functools.partial(
                toy_spec, target, arguments=arguments, balancer=balancer, local={"regularise": True}
            )
            straight = functools.cache(lambda: trained(spec(), folder + "/one"))
            checks: dict[str, Callable[[], str | None]] = {
                "parameters are shared or owned, never both": lambda: _ownership(spec()),
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


def _ownership(spec: RunSpec) -> str | None:
    method = build_method(spec.method, MethodSpec(dict(ToyData.TASKS), spec.model))
    method.configure_model()
    return check_network(method.network, ToyData.TASKS)


def check_network(network: Any, tasks: Mapping[str, Task]) -> str | None:
    """Returns what is wrong with a network's partition of parameters, proved by gradients, or None.

    Args:
        network: An `MTLNetwork` for 16 × 24 images.
        tasks: Its tasks.
    """
    names = list(tasks)
    shared = network.shared_parameters(names)
    owned = {name: network.task_parameters(name) for name in names}
    every = [id(p) for group in (shared, *owned.values()) for p in group]
    trainable = {id(p) for p in network.parameters() if p.requires_grad}
    if len(every) != len(set(every)) or set(every) != trainable:
        return "shared_parameters and task_parameters must split the trainable parameters: each in exactly one set."
    label = {id(p): name for name, p in network.named_parameters()}
    image = torch.randint(0, 256, (4, 3, 16, 24), dtype=torch.uint8)
    outputs = network(image, names)
    auxiliary = {name: [p for _, p in outputs.auxiliary.get(name, ())] for name in names}
    predictions = {name: [outputs.predictions[name], *auxiliary[name]] for name in names}
    for name in names:
        others = [p for other, group in owned.items() if other != name for p in group]
        found = torch.autograd.grad(_sum(predictions[name]), others, retain_graph=True, allow_unused=True)
        touched = [label[id(p)] for p, g in zip(others, found, strict=True) if g is not None and g.abs().max() > 0]
        if touched:
            return f"{touched[0]} is said to belong to another task, and yet {name} depends on it."
    total = _sum([p.square() for found in predictions.values() for p in found])
    learnt = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(total, learnt, allow_unused=True)
    idle = [label[id(p)] for p, g in zip(learnt, gradients, strict=True) if g is None]
    return f"{idle[0]} gets no gradient from any task; ranks would wait for it." if idle else None


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.sum() for tensor in tensors]).sum()


def _one_task(spec: RunSpec, folder: str) -> str | None:
    weights = trained(spec, folder) or {}
    # A balancer's own state may hold NaN for "not there yet"; a network's may not.
    bad = [name for name, value in weights.items() if name.startswith("network.") and not value.isfinite().all()]
    return f"{bad[0]} is not finite after three steps." if bad else None


def _ranks(spec: RunSpec, straight: Mapping[str, Any] | None, folder: str, pool: RankPool) -> str | None:
    two = pool.call(trained, spec, folder + "/two", world=2)[0]
    gap = difference(straight, two)
    if not gap <= TOLERANCE:
        return (
            f"Weights differ by {gap:.1e} (relative) after 20 steps; at most {TOLERANCE:.0e} is allowed. Draw random "
            "numbers from ctx.generator only, and read nothing but the arguments of the hook."
        )
    return None


def _resume(spec: RunSpec, straight: Mapping[str, Any] | None, folder: str) -> str | None:
    if trained(spec, folder + "/broken", stop_at=10) is not None:
        return "The run did not stop when asked."
    gap = difference(straight, trained(spec, folder + "/broken"))
    return f"Weights differ by {gap:.1e} (relative). What the method remembers must be a buffer." if gap else None


def check_data_module(target: str, root: str | None = None, **options: Any) -> list[Finding]:
    """Runs the contract tests on a data module.

    Args:
        target: ``module:Class``.
        root: Folder of its data.
        **options: Its options.
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
    return [_find(name, check) for name, check in checks.items()]


def _samples(data: MTLDataModule) -> str | None:
    for split in data.SPLITS:
        samples = data.samples(split)
        if not len(samples):
            return f"Split {split} is empty."
        for index in range(min(4, len(samples))):
            fault = _sample_fault(samples[index], data)
            if fault:
                return f"{split}[{index}]: {fault}"
    return None


def _sample_fault(sample: Sample, data: MTLDataModule) -> str | None:
    image = sample["image"]
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        return f"image must be uint8 (3, H, W); found {image.dtype} {tuple(image.shape)}."
    for name, target in sample["targets"].items():
        if name not in data.tasks:
            return f"target {name!r} is no task of this run."
        blank = data.tasks[name].blank(*image.shape[-2:])
        if target.shape != blank.shape or target.dtype != blank.dtype:
            wanted, found = (f"{t.dtype} {tuple(t.shape)}" for t in (blank, target))
            return f"target {name} must be {wanted}; found {found}."
    return None


def _repeatable(data: MTLDataModule) -> str | None:
    sample = data.samples("train")[0]
    again = [data.augment(data.samples("train")[0], np.random.default_rng(7)) for _ in range(2)]
    if not torch.equal(sample["image"], data.samples("train")[0]["image"]):
        return "samples('train')[0] differs between two readings."
    for key in again[0]["targets"]:
        if not torch.equal(again[0]["targets"][key].nan_to_num(), again[1]["targets"][key].nan_to_num()):
            return f"augment with equal generators gives different {key}: draw from the generator alone."
    same = torch.equal(again[0]["image"], again[1]["image"])
    return None if same else "augment with equal generators gives different images: draw from the generator alone."


def _batch(data: MTLDataModule) -> str | None:
    samples = data.samples("train")
    batch = Collate(data.tasks)([samples[i] for i in range(min(4, len(samples)))])
    empty = [name for name, task in data.tasks.items() if task.count(batch["targets"][name]) != batch["counts"][name]]
    return f"counts of {empty} do not match their targets." if empty else None
