"""One run in this process: data module, method, Trainer. The only place that builds a Trainer."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from mtlbench import __version__
from mtlbench.data import MTLDataModule
from mtlbench.method import MTLMethod
from mtlbench.networks.dense import build_dense  # noqa: F401 - imported here so that forked runs find it ready
from mtlbench.networks.flops import forward_flops
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder, write_json
from mtlbench.training import checkpoint, warm_start
from mtlbench.training.build import build_with_network
from mtlbench.training.callbacks import EndOfStep, flat
from mtlbench.training.checkpoint import state_sha256
from mtlbench.training.evaluation import evaluate, evaluating, examples
from mtlbench.training.loggers import MetricsFile, Tracker
from mtlbench.training.trainer import build_trainer


def train(
    spec: RunSpec,
    folder: RunFolder,
    *,
    world: int = 1,
    stop: Callable[[], bool] = lambda: False,
    note: Callable[[EndOfStep], None] | None = None,
    listen: Callable[[], None] = lambda: None,
) -> bool:
    """Trains, evaluates and stores one run; returns False if it was asked to stop before the end.

    Args:
        spec: The run.
        folder: Its folder, claimed by this process.
        world: Number of ranks; this process is one of them.
        stop: Returns whether this process was asked to stop.
        note: Called with the callback once it exists, for progress.
        listen: Installs the signal handlers that `stop` relies on.
    """
    rank = int(os.environ.get("LOCAL_RANK", 0)) if world > 1 else 0
    method, data = build_with_network(spec)
    if spec.start:
        warm_start.begin(method, spec, folder.root, lambda other: build_with_network(other)[0])
    if spec.sources:
        method.use_sources(warm_start.networks(spec.sources, folder.root, lambda other: build_with_network(other)[0]))
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
        folder.path,
        data,
        periods,
        select_best=spec.trainer["selection"] == "best",
        metrics=metrics,
        tracker=tracker,
        stop=stop,
        listen=listen,
    )
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
        "format": 1,
        "run_id": spec.run_id,
        "hash": spec.hash,
        "label": spec.label,
        "method": spec.method["name"],
        "seed": spec.seed,
        "tasks": list(spec.tasks),
        "split": split,
        "images": {name: len(data.samples(name)) for name in ("train", split)},
        "steps": end.step,
        "scores": scores,
        "cost": cost,
        "validation": validation,
        "task_gates": any(len(method.network.task_modules(task)) > 1 for task in spec.tasks),
        "conflict_share": end.conflicts / end.measured if end.measured else None,
        "weights_sha256": state_sha256(weights),
        "optimiser_sha256": state_sha256(method.trainer.optimizers[0].state_dict()),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "started": end.started,
        "finished": time.time(),
    }
    folder.finish(result)
    for path in folder.path.glob("step-*.ckpt*"):
        path.unlink()
    if end.tracker is not None:
        end.tracker.finish({**flat(scores, split), **{f"cost/{key}": value for key, value in cost.items()}}, summary)


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    return {
        "mtlbench": __version__,
        "torch": torch.__version__,
        "lightning": L.__version__,
        "python": platform.python_version(),
    }


def _cost(method: MTLMethod, seconds: float, world: int) -> dict[str, Any]:
    cuda = method.device.type == "cuda"
    # Linux reports kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    with evaluating(method):
        image = torch.zeros(1, 3, *method.spec.model["image_size"], dtype=torch.uint8, device=method.device)
        flops = forward_flops(method.network, image, list(method.tasks))
    return {
        "train_seconds": seconds,
        "flops": flops,
        "peak_memory_gib": peak / 2**30,
        "parameters": sum(p.numel() for p in method.network.parameters() if p.requires_grad),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "devices": world,
        "threads": torch.get_num_threads(),
    }


def _step_of(path: Path | None) -> int:
    return int(path.stem.removeprefix("step-")) if path else 0
