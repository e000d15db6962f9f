"""Ends a run after its last step: scores the selected weights and writes what a finished run leaves behind."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import torch

from mtlbench.data import MTLDataModule
from mtlbench.data.label_rules import HELD_OUT
from mtlbench.method import MTLMethod
from mtlbench.runs import keys
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder, write_bytes, write_json
from mtlbench.training import checkpoint
from mtlbench.training.callbacks import EndOfStep
from mtlbench.training.cost import cost_of
from mtlbench.training.evaluation import Scores, evaluate, examples
from mtlbench.training.traces import left_behind
from mtlbench.training.versions import versions

EXAMPLES, SUMMARY = "examples.npz", "summary.json"


def finish(spec: RunSpec, folder: RunFolder, method: MTLMethod, data: MTLDataModule, end: EndOfStep) -> None:
    """Score the selected weights on every rank, and store them with their scores on rank zero.

    ``result.json`` is written last: it makes the run done and holds the hashes of the other files, so all of them are
    already on disk when it appears.
    """
    if spec.trainer["selection"] == "best":
        _restore_best(method, folder)
    split = data.scored_split()
    scores = _scores(method, data, split)
    end.write({"step": end.step, **keys.flat(scores, split)})
    # A plan may choose by these: the reported split must stay unseen until its choice is made. A run that holds out
    # some of its few examples is there for such a choice, and sees no other labels.
    validated = split not in ("val", HELD_OUT)
    validation = _scores(method, data, "val") if validated else None
    weights = method.state_dict()
    cost = {
        **end.clock.summary(),
        **cost_of(method, end.seconds(), method.trainer.world_size, end.flops, end.step),
    }
    if not method.trainer.is_global_zero:
        return
    pictures: Any = examples(method, data.eval_dataloader(split), spec.local["examples"])
    archive = io.BytesIO()
    np.savez_compressed(archive, **pictures)
    write_bytes(folder.path / EXAMPLES, archive.getvalue())
    checkpoint.save({"step": end.step, "state_dict": weights}, folder.path / checkpoint.FINAL)
    summary = method.summary()
    write_json(folder.path / SUMMARY, summary)
    images = {name: len(data.scored_samples(name)) for name in ("train", split)}
    measured = _measured(method, end, scores, validation, weights, cost)
    files = (checkpoint.FINAL, SUMMARY, EXAMPLES)
    result = {**identified(spec), "split": split, "images": images, **measured}
    folder.finish(result, files)
    for path in folder.path.glob("step-*.ckpt*"):
        path.unlink()
    if end.tracker is not None:
        end.tracker.finish(left_behind(result, summary, pictures, folder.path))


def _scores(method: MTLMethod, data: MTLDataModule, split: str) -> Scores:
    return evaluate(method, data.eval_dataloader(split), data.rollouts(split, final=True), final=True)[0]


def _restore_best(method: MTLMethod, folder: RunFolder) -> None:
    """Load the network of the best step; a rule keeps its own state, because its summary describes all of training."""
    best = checkpoint.verified(folder.path / "best.ckpt")["state_dict"]
    prefix = "network."
    method.network.load_state_dict({k.removeprefix(prefix): v for k, v in best.items() if k.startswith(prefix)})


def identified(spec: RunSpec) -> dict[str, Any]:
    """Return the part of a result that says which run it is of."""
    return {
        "format": 1,
        "run_id": spec.run_id,
        "hash": spec.hash,
        "label": spec.label,
        "method": spec.method["name"],
        "seed": spec.seed,
        "tasks": list(spec.tasks),
    }


def _measured(
    method: MTLMethod,
    end: EndOfStep,
    scores: Scores,
    validation: Scores | None,
    weights: dict[str, Any],
    cost: dict[str, Any],
) -> dict[str, Any]:
    return {
        "steps": end.step,
        "scores": scores,
        "cost": cost,
        "validation": validation,
        "task_gates": any(len(method.network.task_modules(task)) > 1 for task in method.tasks),
        "conflict_share": end.conflicts / end.measured if end.measured else None,
        "weights_sha256": checkpoint.state_sha256(weights),
        "optimiser_sha256": checkpoint.state_sha256(method.trainer.optimizers[0].state_dict()),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "started": end.started,
        "finished": time.time(),
    }
