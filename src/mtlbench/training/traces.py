"""What a finished run shows in tracking tools: scores, costs, the use of experts, pictures of predictions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtlbench.runs import keys
from mtlbench.runs.store import RunFolder, finished_run, read_json
from mtlbench.tracking.base import About, Ending, Picture, Table
from mtlbench.tracking.wandb_client import WandbRun
from mtlbench.training.checkpoint import FINAL
from mtlbench.training.loggers import read_rows

USAGE = ("layer", "task", "expert", "probability", "load")
"""Columns of the table on the use of experts."""

WEIGHTS = "MTLBENCH_TRACK_WEIGHTS"
"""Variable that asks for final weights as artifacts: ``1`` for yes."""


def left_behind(
    result: Mapping[str, Any], summary: Mapping[str, Any], examples: Mapping[str, np.ndarray], folder: Path
) -> Ending:
    """Return what tools receive at the end of a run.

    Args:
        result: Its ``result.json``.
        summary: What `MTLMethod.summary` returned.
        examples: What `mtlbench.training.evaluation.examples` returned.
        folder: Its folder.
    """
    weights = {f"{result['run_id']}-weights": [folder / FINAL]} if os.environ.get(WEIGHTS) == "1" else {}
    return Ending(keys.final_values(result), usage(summary), pictures(examples), files=weights)


def send_again(folder: RunFolder) -> str:
    """Send the rest of a finished run that the server has in part, and return why that failed, or ``""``.

    Args:
        folder: Its folder. What is sent comes from its own records; rows that the server has are passed over.
    """
    spec, result = finished_run(folder.path)
    try:
        with np.load(folder.path / "examples.npz", allow_pickle=False) as file:
            shown = {name: file[name] for name in file.files}
    except Exception:  # A broken archive raises many things; the rest of the run can do without pictures.
        shown = {}
    try:
        run = WandbRun(About.training(spec), folder.path, "online")
        for row in read_rows(folder.path / "metrics.jsonl"):
            run.log(row["step"], {key: value for key, value in row.items() if key != "step"})
        run.finish(left_behind(result, read_json(folder.path / "summary.json") or {}, shown, folder.path))
        run.close(0)
    except Exception as error:  # Whatever W&B raises, the other runs are tried.
        return f"{type(error).__name__}: {error}"
    return ""


def usage(summary: Mapping[str, Any]) -> dict[str, Table]:
    """Return the table of how often each task uses each expert: one row per layer, task and expert."""
    experts = summary.get("experts", {"tasks": [], "layers": {}})
    rows = [
        (layer, task, expert, probability, load)
        for layer, tables in experts["layers"].items()
        for task, *lines in zip(experts["tasks"], tables["probability"], tables["load"], strict=True)
        for expert, (probability, load) in enumerate(zip(*lines, strict=True))
    ]
    return {keys.USAGE.key(): Table(USAGE, rows)} if rows else {}


def pictures(examples: Mapping[str, np.ndarray]) -> dict[str, list[Picture]]:
    """Return truth and prediction of every dense task side by side; other tasks are in the caption of the input.

    Inputs that are no images have no pictures.
    """
    if "image" not in examples:
        return {}
    found: dict[str, list[Picture]] = {}
    texts: list[list[str]] = [[] for _ in examples["image"]]
    for task in (key.removeprefix("shown/prediction/") for key in examples if key.startswith("shown/prediction/")):
        truths, predictions = examples[f"shown/target/{task}"], examples[f"shown/prediction/{task}"]
        for number, (truth, predicted) in enumerate(zip(truths, predictions, strict=True)):
            if predictions.dtype.kind == "U":
                texts[number].append(f"{task}: {truth} (truth), {predicted}")
            else:
                both = np.concatenate([truth, predicted], axis=1)
                found.setdefault(keys.PICTURE.key(task=task), []).append(Picture(both, f"{number}: truth, prediction"))
    inputs = [
        Picture(np.ascontiguousarray(image.transpose(1, 2, 0)), f"{number}: {'; '.join(text) or 'input'}")
        for number, (image, text) in enumerate(zip(examples["image"], texts, strict=True))
    ]
    return {keys.INPUT.key(): inputs, **found} if inputs else {}
