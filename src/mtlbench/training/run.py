"""Trains one run in this process: build, warm start, resume, fit, finish."""

from __future__ import annotations

import os
from collections.abc import Callable

from mtlbench.data import MTLDataModule
from mtlbench.method import MTLMethod
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from mtlbench.tracking.base import About
from mtlbench.tracking.tracker import Tracker
from mtlbench.training import checkpoint, warm_start
from mtlbench.training.build import build_with_network, switch_on
from mtlbench.training.callbacks import EndOfStep
from mtlbench.training.finish import finish
from mtlbench.training.loggers import MetricsFile
from mtlbench.training.sharding import check_sharding
from mtlbench.training.trainer import build_trainer


def train(
    spec: RunSpec,
    folder: RunFolder,
    *,
    world: int = 1,
    nodes: int = 1,
    stop: Callable[[], bool] = lambda: False,
    note: Callable[[EndOfStep], None] | None = None,
    listen: Callable[[], None] = lambda: None,
) -> bool:
    """Train, evaluate and store one run; return False if it was asked to stop before the end.

    Args:
        spec: The run.
        folder: Its folder, claimed by this process.
        world: Number of ranks; this process is one of them.
        nodes: Number of nodes that they are spread over.
        stop: Returns whether this process was asked to stop.
        note: Called with the callback once it exists, to follow the progress.
        listen: Installs the signal handlers that `stop` relies on.
    """
    rank = int(os.environ.get("RANK", 0)) if world > 1 else 0
    method, data = _prepared(spec, folder)
    if world > 1 and spec.local.get("strategy") == "fsdp":
        check_sharding(method, spec)
    resume = checkpoint.newest(folder.path)
    metrics = _metrics(spec, folder, data, checkpoint.step_of(resume)) if rank == 0 else None
    history = metrics.kept if metrics else ()
    tracker = Tracker(About.training(spec), folder.path, active=rank == 0, history=history)
    end = EndOfStep(
        folder.path,
        data,
        _periods(spec),
        select_best=spec.trainer["selection"] == "best",
        metrics=metrics,
        tracker=tracker,
        stop=stop,
        listen=listen,
    )
    if note is not None:
        note(end)
    trainer = build_trainer(spec, folder.path, [end], world, data.batches, nodes)
    try:
        trainer.fit(method, datamodule=data, ckpt_path=str(resume) if resume else None, weights_only=True)
        end.step = trainer.global_step
        if not end.stopped:
            # Lightning moves the network to the CPU when training ends; it is scored where it was trained.
            method.to(trainer.strategy.root_device)
            finish(spec, folder, method, data, end)
    finally:
        tracker.close()
        if metrics is not None:
            metrics.close()
    trainer.strategy.barrier()
    return not end.stopped


def _prepared(spec: RunSpec, folder: RunFolder) -> tuple[MTLMethod, MTLDataModule]:
    """Build method and data, and take from other runs of the store what the specification names."""
    method, data = build_with_network(spec)
    if spec.start:
        warm_start.begin(method, spec, folder.root, _build_method)
    if spec.sources:
        method.use_sources(warm_start.networks(spec.sources, folder.root, _build_method))
    switch_on(method, spec)
    return method, data


def _build_method(spec: RunSpec) -> MTLMethod:
    return build_with_network(spec)[0]


def _metrics(spec: RunSpec, folder: RunFolder, data: MTLDataModule, step: int) -> MetricsFile:
    """Open the run's metrics as they were at a step; a finished training that is scored again drops its old scores."""
    again = f"{data.scored_split()}/" if step == spec.trainer["steps"] else None
    return MetricsFile(folder.path / "metrics.jsonl", step, again)


def _periods(spec: RunSpec) -> dict[str, int]:
    return {
        "log_every": spec.local["log_every"],
        "checkpoint_every": spec.local["checkpoint_every"],
        "evaluate_every": spec.trainer["evaluate_every"],
    }
