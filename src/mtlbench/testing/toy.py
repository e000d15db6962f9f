"""Toy data and tiny float64 runs for the contract checks: in one process, on several ranks, or interrupted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mtlbench import registry
from mtlbench.data import Collate, MTLDataModule, Sample, Samples, StepBatches
from mtlbench.method import DEFAULT_OPTIMISER, MTLMethod
from mtlbench.networks.base import Outputs
from mtlbench.networks.experts import global_mean
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from mtlbench.seeding import seed_of
from mtlbench.tasks import Classification, Depth, Regression, SemanticSegmentation, Task
from mtlbench.tasks.inputs import GRAPHS, IMAGES, TOKENS, VECTORS
from mtlbench.training import checkpoint
from mtlbench.training.callbacks import EndOfStep
from mtlbench.training.run import train


class ToyData(MTLDataModule):
    """Random images of 16 × 24 pixels, some of whose labels are missing on purpose.

    With two ranks, sample p of a step's batch goes to rank p mod 2. In every fourth step task ``shape`` has no label on
    odd p, so that it is absent on one rank. In the step after that it has no label at all.

    Args:
        ragged: Whether labels are left out.
        size: Number of training samples.
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
        """Returns samples that depend only on split and index."""
        return _ToySamples(split, self.size if split == "train" else 7, self)

    def sample(self, generator: np.random.Generator) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns an image with its labels."""
        image = generator.integers(0, 256, (3, 16, 24), dtype=np.uint8)
        bright = image.mean(0)
        targets = {
            "kind": torch.tensor(int(bright.mean() * 7) % 3),
            "shape": torch.from_numpy(np.digitize(bright, [90, 128, 160]).astype(np.int64)),
            "far": torch.from_numpy((1 + bright / 128)[None].astype(np.float32)),
            "mean": torch.tensor(float(bright.mean() / 32)),
        }
        return {"image": torch.from_numpy(image)}, targets

    def train_dataloader(self) -> DataLoader:
        """Returns the data in order, so that labels can be absent on a chosen rank and step."""
        trainer: Any = self.trainer
        samples = _ToySamples("train", self.steps * self.batch_size, self)
        batches = _InOrder(
            len(samples),
            self.batch_size,
            self.steps,
            self.seed,
            start=trainer.global_step,
            micro=self.micro,
            rank=trainer.global_rank,
            world=trainer.world_size,
            batches=self.batches,
        )
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
        inputs, targets = self.data.sample(generator)
        if self.data.ragged and self.split == "train":
            targets = {name: value for name, value in targets.items() if self._labelled(name, index, generator)}
            if "far" in targets and targets["far"].ndim:
                targets["far"][:, : index % 9] = 255.0
        kept = {name: value for name, value in targets.items() if name in self.data.tasks}
        return {**inputs, "targets": kept, "id": f"{self.split}-{index}"}

    def _labelled(self, name: str, index: int, generator: np.random.Generator) -> bool:
        step, position = divmod(index, self.data.batch_size)
        if name == "shape" and step % 4 == 2:
            return position % 2 == 0
        if name == "shape" and step % 4 == 3:
            return False
        return bool(generator.random() < 0.8)


class ToyVectors(ToyData):
    """Random vectors of 6 numbers; labels are missing where `ToyData` misses those of its tasks of the same names."""

    TASKS: ClassVar[Mapping[str, Task]] = {
        "kind": Classification("kind", classes=3),
        "shape": Classification("shape", classes=4),
        "far": Regression("far", scale=2.0),
        "mean": Regression("mean"),
    }
    INPUTS: ClassVar[str] = VECTORS

    def input_sizes(self) -> dict[str, int]:
        """Returns the length of the vectors."""
        return {"features": 6}

    def sample(self, generator: np.random.Generator) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns a vector with its labels."""
        x = generator.standard_normal(6).astype(np.float32)
        bright = float(x.sum())
        targets = {
            "kind": torch.tensor(int(abs(bright) * 7) % 3),
            "shape": torch.tensor(int(np.digitize(bright, [-1, 0, 1]))),
            "far": torch.tensor(float(x[0] - x[1])),
            "mean": torch.tensor(bright),
        }
        return {"inputs": torch.from_numpy(x)}, targets


class ToyTexts(ToyVectors):
    """Texts of 3 to 9 random tokens, with the labels of `ToyVectors`, which depend on their tokens."""

    INPUTS: ClassVar[str] = TOKENS

    def input_sizes(self) -> dict[str, int]:
        """Returns vocabulary and length."""
        return {"vocabulary": 20, "length": 9}

    def sample(self, generator: np.random.Generator) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns a text with its labels."""
        tokens = torch.from_numpy(generator.integers(1, 20, int(generator.integers(3, 10))))
        mean = float(tokens.double().mean())
        targets = {
            "kind": torch.tensor(int(mean * 7) % 3),
            "shape": torch.tensor(int(np.digitize(mean, [8, 10, 12]))),
            "far": torch.tensor(float(tokens[0] - tokens[1]) / 10),
            "mean": torch.tensor(mean / 10),
        }
        return {"inputs": {"tokens": tokens}}, targets


class ToyGraphs(ToyVectors):
    """Graphs of 1 to 5 nodes with random edges, and the labels of `ToyVectors`, which depend on nodes and edges."""

    INPUTS: ClassVar[str] = GRAPHS

    def input_sizes(self) -> dict[str, int]:
        """Returns the sizes of the graphs."""
        return {"nodes": 5, "node_features": 3, "edge_features": 2}

    def sample(self, generator: np.random.Generator) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns a graph with its labels."""
        size = int(generator.integers(1, 6))
        nodes = generator.standard_normal((size, 3)).astype(np.float32)
        edges = generator.standard_normal((size, size, 2)).astype(np.float32)
        linked = generator.random((size, size)) < 0.6
        bright = float(nodes.sum() + edges[linked].sum())
        targets = {
            "kind": torch.tensor(int(abs(bright) * 7) % 3),
            "shape": torch.tensor(int(np.digitize(bright, [-1, 0, 1]))),
            "far": torch.tensor(float(nodes[0, 0])),
            "mean": torch.tensor(bright / 3),
        }
        graph = {"nodes": nodes, "edges": edges, "linked": linked}
        return {"inputs": {key: torch.from_numpy(value) for key, value in graph.items()}}, targets


TOYS: Mapping[str, tuple[type[ToyData], Mapping[str, Any]]] = {
    IMAGES: (
        ToyData,
        {
            "encoder": "vit_tiny_patch16_224",
            "image_size": [16, 24],
            "decoder_channels": 8,
            "encoder_options": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
        },
    ),
    VECTORS: (
        ToyVectors,
        {
            "encoder": "mlp:residual",
            "decoder_channels": 8,
            "encoder_options": {"width": 16, "depth": 2},
            "inputs": {"features": 6},
        },
    ),
    TOKENS: (
        ToyTexts,
        {
            "encoder": "transformers:bert",
            "decoder_channels": 8,
            # Dropout differs between ranks.
            "encoder_options": {
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            "inputs": {"vocabulary": 20, "length": 9},
        },
    ),
    GRAPHS: (
        ToyGraphs,
        {
            "encoder": "graph:nnconv",
            "decoder_channels": 8,
            "encoder_options": {"width": 6, "hidden": 5, "steps": 2, "readouts": 2},
            "inputs": {"nodes": 5, "node_features": 3, "edge_features": 2},
        },
    ),
}
"""Kind of inputs -> toy data, and the section ``model`` of its runs."""


def toy_spec(
    target: str,
    *,
    steps: int = 20,
    arguments: Mapping[str, Any] | None = None,
    inputs: str = IMAGES,
    **changes: Any,
) -> RunSpec:
    """Returns a run of a method or balancer on the toy data, in float64, with clipping.

    Args:
        target: A name or ``module:Class``.
        steps: Optimiser steps.
        arguments: Hyper-parameters that differ from the defaults.
        inputs: Kind of inputs, a key of `TOYS`.
        **changes: Entries of the trainer section, and ``tasks``, ``ragged``, ``seed``, ``balancer``, ``local``.
    """
    cls = registry.find(target)
    toy, model = TOYS[inputs]
    names = changes.pop("tasks", list(toy.TASKS))
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
        suite="check",
        label=target,
        seed=changes.pop("seed", 0),
        method=method,
        tasks={name: toy.TASKS[name].describe() for name in names},
        data={
            "module": f"mtlbench.testing.toy:{toy.__name__}",
            "options": {"ragged": changes.pop("ragged", True)},
        },
        model=dict(model),
        optimiser={**DEFAULT_OPTIMISER, "lr": 0.01},
        local={**local, **changes.pop("local", {})},
        trainer={
            "steps": steps,
            "batch_size": 8,
            "accumulate": 1,
            "precision": "64-true",
            "clip": 0.5,
            "evaluate_every": 7,
            "selection": "last",
            **changes,
        },
    )


def trained(
    spec: RunSpec, folder: str, *, world: int = 1, stop_at: int | None = None, nudge: float = 0.0
) -> dict[str, Tensor] | None:
    """Trains a run in this process, one of ``world`` ranks; returns its final weights, or None if it was stopped.

    Args:
        spec: The run. If its local section sets ``regularise``, the method gets a further regulariser.
        folder: Root of the store. An interrupted run in it is resumed.
        world: Number of ranks.
        stop_at: Step at which the run is asked to stop, as a signal would do.
        nudge: Share by which all weights are larger at the start.
    """
    run = RunFolder(Path(folder), spec.run_id)
    run.path.mkdir(parents=True, exist_ok=True)
    ends: list[EndOfStep] = []
    stop = (lambda: bool(ends) and ends[0].step >= stop_at) if stop_at is not None else (lambda: False)
    found = registry.find(spec.method["path"])
    cls = found if issubclass(found, MTLMethod) else MTLMethod
    with _regularised(cls, active=spec.local.get("regularise", False)), _nudged(cls, nudge):
        done = train(spec, run, world=world, stop=stop, note=ends.append)
    return checkpoint.load(run.path / "final.ckpt")["state_dict"] if done else None


def sourced(spec: RunSpec, folder: str) -> RunSpec:
    """Returns a run with the sources that its method expects: plain networks trained for one step if missing.

    Args:
        spec: The run.
        folder: Root of the store.
    """
    cls = registry.find(spec.method["path"])
    roles = cls.roles(list(spec.tasks)) if issubclass(cls, MTLMethod) else {}
    plain = replace(
        spec.with_method(registry.record("uniform")),
        label="source",
        trainer={**spec.trainer, "steps": 1},
        local={**spec.local, "regularise": False},
    )
    sources = {role: plain.with_tasks(*tasks) for role, tasks in roles.items()}
    for source in sources.values():
        run = RunFolder(Path(folder), source.run_id)
        if not run.result() and run.claim(source):
            train(source, run)
    return spec.with_sources(**sources) if sources else spec


@contextmanager
def _regularised(cls: type[MTLMethod], *, active: bool) -> Iterator[None]:
    """Adds a regulariser to a method: the squared mean of every prediction over the batches of all ranks."""
    own = cls.regularisation

    def regularisation(self: MTLMethod, outputs: Outputs, batch: Any) -> dict[str, Tensor]:
        means = torch.stack([prediction.mean() for prediction in outputs.predictions.values()])
        return {**own(self, outputs, batch), "squared mean": 0.1 * global_mean(means).square().sum()}

    with _changed(cls, "regularisation", regularisation if active else own):
        yield


@contextmanager
def _nudged(cls: type[MTLMethod], share: float) -> Iterator[None]:
    """Lets training start from weights that are larger by a share."""
    own = cls.on_train_start

    def on_train_start(self: MTLMethod) -> None:
        own(self)
        with torch.no_grad():
            for parameter in self.network.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1 + share)

    with _changed(cls, "on_train_start", on_train_start if share else own):
        yield


@contextmanager
def _changed(cls: type[MTLMethod], name: str, hook: Any) -> Iterator[None]:
    """Replaces a hook of a class, not of an instance, because `train` builds the method itself."""
    own, inherited = getattr(cls, name), name not in vars(cls)
    setattr(cls, name, hook)
    try:
        yield
    finally:
        if inherited:
            delattr(cls, name)
        else:
            setattr(cls, name, own)
