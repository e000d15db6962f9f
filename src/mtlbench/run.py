"""One run in this process: data module, method, Trainer. The only place that builds a Trainer."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mtlbench import __version__, checkpoint, registry, start
from mtlbench.allocator import keep_freed_memory
from mtlbench.callbacks import EndOfStep, Heartbeat, flat
from mtlbench.checkpoint import state_sha256
from mtlbench.data import MTLDataModule, seed_of
from mtlbench.errors import DataError, MtlbenchError, StoreError
from mtlbench.evaluation import evaluate, evaluating, examples
from mtlbench.method import MethodSpec, MTLMethod
from mtlbench.networks.dense import build_dense  # noqa: F401 - imported here so that forked runs find it ready
from mtlbench.networks.flops import forward_flops
from mtlbench.plan import RunSpec
from mtlbench.store import RunFolder, born, write_json
from mtlbench.tasks import Task
from mtlbench.tracking import MetricsFile, Tracker


@dataclass(frozen=True)
class LoadedRun:
    """A finished run, ready to predict.

    Attributes:
        method: The trained method in evaluation mode; call it with uint8 images (B, 3, H, W).
        data: The data module it was trained on.
        spec: Its specification.
        result: Its scores and cost.
    """

    method: MTLMethod
    data: MTLDataModule
    spec: RunSpec
    result: dict[str, Any]


def load_run(folder: str | Path, *, data: str | None = None) -> LoadedRun:
    """Loads a finished run for prediction or further study.

    Args:
        folder: ``results/<suite>/<run_id>``.
        data: Folder of the data, where it has moved since.

    Raises:
        StoreError: If there is no such run, it is not done, or its weights are damaged.

    Example::

        run = mtlbench.load_run("results/digits/uniform-s0-1a2b3c4d")
        predictions = run.method(images)          # {task: (B, channels, H, W)}
    """
    path = Path(folder)
    if not path.is_dir():
        raise StoreError(
            f"{path} is not a run's folder; runs are in results/<suite>/<run_id>. `mtlbench status` lists them."
        )
    run = RunFolder(path.parent, path.name)
    spec, result = run.spec(), run.result()
    if spec is None or result is None:
        raise StoreError(f"A run must be done to be loaded. {path} is {run.state()}. `mtlbench status` lists runs.")
    if data is not None:
        spec = RunSpec(**{**spec.__dict__, "local": {**spec.local, "root": data}})
    method, module = build(spec)
    method.configure_model()
    weights = checkpoint.verified(path / "final.ckpt")
    try:
        method.load_state_dict(weights["state_dict"])
    except RuntimeError as error:
        raise StoreError(f"Weights must fit the method. {path}: another version trained them. {error}") from error
    return LoadedRun(method.eval(), module, spec, result)


def build_tasks(spec: RunSpec, module: type[MTLDataModule]) -> dict[str, Task]:
    """Returns the tasks of a run with the suite's changes."""
    return {
        name: module.TASKS[name].with_options(scale=described["scale"], optional=described["optional"])
        for name, described in spec.tasks.items()
    }


def build(spec: RunSpec) -> tuple[MTLMethod, MTLDataModule]:
    """Returns the method (network not built yet) and the data module of a run."""
    module = registry.load(spec.data["module"])
    tasks = build_tasks(spec, module)
    trainer, local = spec.trainer, spec.local
    data = module(
        local.get("root"), tasks=tasks, batch_size=trainer["batch_size"], steps=trainer["steps"], seed=spec.seed,
        workers=local.get("workers", 0), micro=trainer["accumulate"], **spec.data["options"],
    )  # fmt: skip
    data.labels = spec.data.get("labels", {})
    method_spec = MethodSpec(
        tasks, {**spec.model, "weights": local.get("weights")}, spec.optimiser, trainer["steps"],
        data.steps_per_epoch(), spec.seed, local.get("diagnose_every", 0), local.get("surgery", "auto"),
    )  # fmt: skip
    method = build_method(spec.method, method_spec)
    data.batches = method.balancer.batches
    return method, data


def build_method(entry: Mapping[str, Any], spec: MethodSpec) -> MTLMethod:
    """Returns a method from its suite entry: ``path``, ``arguments`` and, perhaps, ``balancer``."""
    cls: Any = registry.find(entry["path"])
    if not issubclass(cls, MTLMethod):
        method = MTLMethod(spec)
        method.use_balancer(cls(**entry["arguments"]))
        return method
    method = cls(spec, **entry["arguments"])
    balancer = entry.get("balancer")
    if balancer:
        rule: Any = registry.find(balancer["path"])
        method.use_balancer(rule(**balancer["arguments"]))
    return method


def build_trainer(spec: RunSpec, folder: Path, callbacks: list[L.Callback], world: int, batches: int = 1) -> L.Trainer:
    """Returns the Trainer of a run. ``world`` ranks were started already, one process each."""
    trainer = spec.trainer
    cuda = torch.cuda.is_available()
    strategy: Strategy = SingleDeviceStrategy(torch.device("cuda", 0) if cuda else torch.device("cpu"))
    if world > 1:
        # Both backends, so that counts are added on the host without waiting for a device. Buffers: see evaluation.
        strategy = DDPStrategy(process_group_backend="cpu:gloo,cuda:nccl" if cuda else "gloo", broadcast_buffers=False)
    return L.Trainer(
        accelerator="cuda" if cuda else "cpu", devices=world, strategy=strategy, precision=trainer["precision"],
        max_steps=trainer["steps"], max_epochs=-1,
        accumulate_grad_batches=trainer["accumulate"] * batches,
        gradient_clip_val=trainer["clip"] or None, callbacks=callbacks, plugins=[checkpoint.CheckpointFiles()],
        default_root_dir=str(folder), logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0, use_distributed_sampler=False,
        sync_batchnorm=cuda and world > 1, inference_mode=False,
    )  # fmt: skip


def train(
    spec: RunSpec, folder: RunFolder, *, world: int = 1, stop: Any = lambda: False, note: Any = None,
    listen: Any = lambda: None,
) -> bool:  # fmt: skip
    """Trains, evaluates and stores one run; returns False if it was asked to stop before the end.

    Args:
        spec: The run.
        folder: Its folder, claimed by this process.
        world: Number of ranks; this process is one of them.
        stop: Tells whether this process was asked to stop.
        note: Called with the callback once it exists, for progress.
        listen: Puts the handlers of signals that `stop` tells of in place.
    """
    rank = int(os.environ.get("LOCAL_RANK", 0)) if world > 1 else 0
    method, data = _with_network(spec)
    if spec.start:
        start.begin(method, spec, folder.root, lambda other: _with_network(other)[0])
    if spec.sources:
        method.use_sources(start.networks(spec.sources, folder.root, lambda other: _with_network(other)[0]))
    if spec.local.get("compile"):
        method.network.compile(backend=spec.local["compile"])
    resume = checkpoint.newest(folder.path)
    at, split = _step_of(resume), data.SPLITS[-1]
    again = f"{split}/" if at == spec.trainer["steps"] else None
    metrics = MetricsFile(folder.path / "metrics.jsonl", at, again) if rank == 0 else None
    tracker = Tracker(spec, folder.path, active=rank == 0, history=metrics.kept if metrics else ())
    periods = {key: spec.local[key] for key in ("log_every", "checkpoint_every")}
    periods["evaluate_every"] = spec.trainer["evaluate_every"]
    end = EndOfStep(
        folder.path, data, periods, select_best=spec.trainer["selection"] == "best", metrics=metrics, tracker=tracker,
        stop=stop, listen=listen,
    )  # fmt: skip
    if note is not None:
        note(end)
    trainer = build_trainer(spec, folder.path, [end], world, data.batches)
    try:
        trainer.fit(method, datamodule=data, ckpt_path=str(resume) if resume else None, weights_only=True)
        end.step = trainer.global_step
        if not end.stopped:
            _finish(spec, folder, method, data, end)
    finally:
        tracker.close()
        if metrics is not None:
            metrics.close()
    trainer.strategy.barrier()
    return not end.stopped


def _with_network(spec: RunSpec) -> tuple[MTLMethod, MTLDataModule]:
    """Returns method and data of a run with a fresh network."""
    method, data = build(spec)
    # Every rank starts from the same weights, and every method with the same seed from the same encoder.
    torch.manual_seed(seed_of("weights", spec.seed))
    method.configure_model()
    if spec.trainer["precision"] == "64-true":
        # Lightning converts after restoring: a checkpoint would pass through float32 and come back rounded.
        method.double()
    return method, data


def _finish(spec: RunSpec, folder: RunFolder, method: MTLMethod, data: MTLDataModule, end: EndOfStep) -> None:
    """Scores the selected weights and writes what a finished run leaves behind."""
    if spec.trainer["selection"] == "best":
        best = checkpoint.verified(folder.path / "best.ckpt")["state_dict"]
        # The network alone: what a rule has gathered, and tells in the summary, is of the whole training.
        prefix = "network."
        method.network.load_state_dict({k.removeprefix(prefix): v for k, v in best.items() if k.startswith(prefix)})
    split = data.SPLITS[-1]
    scores, _ = evaluate(method, data.eval_dataloader(split), final=True)
    end.write({"step": end.step, **flat(scores, split)})
    # What a plan may choose by.
    validation = evaluate(method, data.eval_dataloader("val"), final=True)[0] if split != "val" else None
    weights = method.state_dict()
    cost = {**end.clock.summary(), **_cost(method, end.seconds(), method.trainer.world_size)}
    if not method.trainer.is_global_zero:
        return
    pictures: Any = examples(method, data.eval_dataloader(split), spec.local["examples"])
    np.savez_compressed(folder.path / "examples.npz", **pictures)
    checkpoint.save({"step": end.step, "state_dict": weights}, folder.path / "final.ckpt")
    summary = method.summary()
    write_json(folder.path / "summary.json", summary)
    result = {
        "format": 1, "run_id": spec.run_id, "hash": spec.hash, "label": spec.label, "method": spec.method["name"],
        "seed": spec.seed, "tasks": list(spec.tasks), "split": split, "steps": end.step, "scores": scores, "cost": cost,
        "validation": validation, "task_gates": any(len(method.network.task_modules(task)) > 1 for task in spec.tasks),
        "conflict_share": end.conflicts / end.measured if end.measured else None,
        "weights_sha256": state_sha256(weights),
        "optimiser_sha256": state_sha256(method.trainer.optimizers[0].state_dict()),
        "versions": versions(), "threads": torch.get_num_threads(), "started": end.started, "finished": time.time(),
    }  # fmt: skip
    folder.finish(result)
    for path in folder.path.glob("step-*.ckpt*"):
        path.unlink()
    if end.tracker is not None:
        end.tracker.finish({**flat(scores, split), **{f"cost/{key}": value for key, value in cost.items()}}, summary)


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    return {
        "mtlbench": __version__, "torch": torch.__version__, "lightning": L.__version__,
        "python": platform.python_version(),
    }  # fmt: skip


def _cost(method: MTLMethod, seconds: float, world: int) -> dict[str, Any]:
    cuda = method.device.type == "cuda"
    # Linux reports kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    with evaluating(method):
        image = torch.zeros(1, 3, *method.spec.model["image_size"], dtype=torch.uint8, device=method.device)
        flops = forward_flops(method.network, image, list(method.tasks))
    return {
        "train_seconds": seconds, "flops": flops, "peak_memory_gib": peak / 2**30,
        "parameters": sum(p.numel() for p in method.network.parameters() if p.requires_grad),
        "device": torch.cuda.get_device_name() if cuda else "cpu", "devices": world,
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def _step_of(path: Path | None) -> int:
    return int(path.stem.removeprefix("step-")) if path else 0


@dataclass(frozen=True)
class Seat:
    """Where a process sits among the ranks of a run."""

    rank: int = 0
    world: int = 1
    port: int = 0
    threads: int = 0
    parent: int = 0


def work(root: str, record: Mapping[str, Any], seat: Seat) -> int:
    """Runs one rank of one run to its end and returns the exit code: 0 done, 1 failed, 3 not ours, 4 stopped.

    Whatever happens is on disk afterwards: ``result.json``, ``error.json``, or a checkpoint to resume from.
    """
    spec = RunSpec.from_json(record)
    folder = RunFolder(Path(root), spec.run_id)
    asked: list[int] = []

    def listen() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda signum, frame: asked.append(signum))

    listen()
    keep_freed_memory()
    if seat.threads:
        torch.set_num_threads(seat.threads)
    if seat.world > 1:
        _join_ranks(seat)
    beat = None
    try:
        if seat.rank == 0:
            if not folder.claim(spec):
                return 3
            beat, note = _heart(folder, spec, seat, asked)
        else:
            note = None
        done = train(spec, folder, world=seat.world, stop=lambda: bool(asked), note=note, listen=listen)
        return 0 if done else 4
    except SIGTERMException:  # Lightning's answer to a signal before the first step: nothing is lost yet.
        return 4
    except Exception as error:
        traceback.print_exc()
        if seat.rank == 0 or isinstance(error, MtlbenchError):
            _record_failure(folder, error)
        return 1
    finally:
        if beat is not None:
            beat.close()
            folder.release()


def _heart(folder: RunFolder, spec: RunSpec, seat: Seat, asked: list[int]) -> tuple[Heartbeat, Any]:
    current: list[EndOfStep] = []
    beat = Heartbeat(
        folder, lambda: current[0].step if current else 0, spec.trainer["steps"],
        lambda: not seat.parent or born(seat.parent) is not None, lambda: asked.append(signal.SIGTERM),
    )  # fmt: skip
    beat.start()
    return beat, current.append


def _join_ranks(seat: Seat) -> None:
    """Tells Lightning that this process is one of several that somebody else started."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(seat.port), WORLD_SIZE=str(seat.world), NODE_RANK="0",
        LOCAL_RANK=str(seat.rank), RANK=str(seat.rank),
    )  # fmt: skip


def _record_failure(folder: RunFolder, error: Exception) -> None:
    record = {
        "type": type(error).__name__, "message": str(error), "traceback": traceback.format_exc(), "time": time.time(),
        "kind": "bad input" if isinstance(error, (DataError, StoreError)) else "error",
    }  # fmt: skip
    with contextlib.suppress(StoreError, OSError):
        write_json(folder.path / "error.json", record)


def quiet_lightning() -> None:
    """Silences what Lightning says about things that are meant: evaluation is ours, buffers follow our rule."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for text in ("You defined a `validation_step`", "`broadcast_buffers` is deprecated", "`isinstance\\(treespec"):
        warnings.filterwarnings("ignore", message=text)
    for text in ("The 'train_dataloader' does not have many workers", "You're resuming from a checkpoint that ended"):
        warnings.filterwarnings("ignore", message=text)


def process(root: str, record: Mapping[str, Any], seat: Seat, log: str) -> None:
    """Entry of a forked run: sends its output to a file and ends the process with the exit code of `work`."""
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    quiet_lightning()
    code = work(root, record, seat)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of a hanging collective on another rank must not keep a finished process alive.
    os._exit(code)
