"""Writes a realistic results folder without training: ``python -m tests.support.fake_study FOLDER``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = ["background", "box", "ball", "cone", "floor", "wall"]
TASKS: dict[str, dict[str, Any]] = {
    "semseg": {"kind": "semantic_segmentation", "class_names": CLASSES, "protocols": [("semseg_miou@1", True, "")]},
    "depth": {"kind": "depth", "protocols": [("depth_rmse@1", False, "m"), ("depth_rel@1", False, "")]},
    "normals": {
        "kind": "normals",
        "protocols": [("normals_mean@1", False, "deg"), ("normals_within_11.25@1", True, "")],
    },
    "saliency": {"kind": "saliency", "protocols": [("saliency_miou@1", True, "")]},
    "edges": {"kind": "edges", "protocols": [("edge_loss@1", False, "")]},
    "count": {"kind": "classification", "class_names": ["one", "two"], "protocols": [("accuracy@1", True, "")]},
}
BASE = {
    "semseg_miou@1": 0.412, "depth_rmse@1": 0.61, "depth_rel@1": 0.14, "normals_mean@1": 22.1,
    "normals_within_11.25@1": 0.4, "saliency_miou@1": 0.71, "edge_loss@1": 0.092, "accuracy@1": 0.84,
}  # fmt: skip
METHODS = {
    "single_task": 0.0,
    "uniform": -0.02,
    "pcgrad": 0.01,
    "cagrad": 0.012,
    "famo": 0.03,
    "uncertainty": -0.005,
    "mod_squad_pcgrad": 0.045,
    "gradnorm": 0.0,
}


def plan(labels: list[str], tasks: list[str], seeds: list[int]) -> dict[str, Any]:
    """Returns a study.json whose rows share one run for all tasks, single_task excepted."""
    rows = []
    for label in labels:
        for seed in seeds:
            names = [f"{label}-s{seed}-{task}" if label == "single_task" else f"{label}-s{seed}-0a1b" for task in tasks]
            runs = list(dict.fromkeys(names))
            serving = dict(zip(tasks, names, strict=True))
            rows.append({"label": label, "method": label, "seed": seed, "runs": runs, "serving": serving})
    return {
        "format": 1,
        "suite": "scenes",
        "version": 1,
        "title": "Rendered rooms, every task on the same image",
        "overrides": ["model.encoder=resnet18"],
        "baseline": "single_task",
        "selection": "last",
        "split": "val",
        "search": "none: every method runs with its declared defaults",
        "seeds": seeds,
        "tasks": {name: _task(name) for name in tasks},
        "removed": [{"task": "parts", "reason": "folder human_parts is absent"}],
        "rows": rows,
        "commit": "abc1234",
        "dirty": True,
        "package": "0.1.0",
        "data": "scenes, 512 + 128 rendered images of 96 x 128",
        "created": "2025-01-01T12:00:00+00:00",
    }


def result(run: str, entry: dict[str, Any], scores: dict[str, Any], seconds: float = 0.1) -> dict[str, Any]:
    """Returns a result.json."""
    cost = {
        "seconds_per_step": seconds,
        "seconds_per_step_p95": 1.2 * seconds,
        "train_seconds": 350 * seconds,
        "peak_memory_gib": 0.8 + seconds,
        "parameters": 1_234_567,
        "device": "cpu",
        "devices": 1,
        "threads": 1,
    }
    return {
        "format": 1,
        "run_id": run,
        "hash": run.rpartition("-")[2],
        "label": entry["label"],
        "method": entry["method"],
        "seed": entry["seed"],
        "tasks": list(scores),
        "split": "val",
        "steps": 350,
        "scores": scores,
        "cost": cost,
        "finished": "2025",
    }


def write_study(folder: Path, labels: list[str] | None = None, seeds: Sequence[int] = (0, 1, 2)) -> Path:
    """Writes a whole results folder: one failed run, one unfinished one, metrics and examples."""
    labels = labels or list(METHODS)
    study = plan(labels, list(TASKS), list(seeds))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(study))
    for entry in study["rows"]:
        rng = np.random.default_rng([labels.index(entry["label"]), entry["seed"]])
        for run in entry["runs"]:
            _write_run(folder / run, entry, [t for t, r in entry["serving"].items() if r == run], rng)
    return folder


def _task(name: str) -> dict[str, Any]:
    protocols = [dict(zip(("id", "higher_is_better", "unit"), p, strict=True)) for p in TASKS[name]["protocols"]]
    return {"scale": 1.0, "in_delta_m": name != "edges", **TASKS[name], "protocols": protocols}


def _write_run(run: Path, entry: dict[str, Any], tasks: list[str], rng: np.random.Generator) -> None:
    run.mkdir()
    gain = METHODS.get(entry["label"], 0.0)
    if entry["label"] == "gradnorm" and entry["seed"] == 1:
        message = "The loss of task 'depth' became NaN at step 120. Lower trainer.lr or clip gradients."
        (run / "error.json").write_text(json.dumps({"type": "DivergedError", "message": message, "traceback": "..."}))
        return
    lines = [json.dumps(row) for row in _metrics(entry, tasks, gain, rng)]
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"st']))  # A killed run leaves half a line.
    if entry["label"] == "gradnorm" and entry["seed"] == 2:
        return
    scores = {
        t: {p: BASE[p] * (1 + (gain + rng.normal(0, 0.006)) * (1 if up else -1)) for p, up, _ in TASKS[t]["protocols"]}
        for t in tasks
    }
    seconds = (0.02 if entry["label"] == "single_task" else 0.06) + 0.05 * abs(gain) * 20
    (run / "result.json").write_text(json.dumps(result(run.name, entry, scores, seconds)))
    if entry["seed"] == 0:
        np.savez(run / "examples.npz", **examples(tasks, rng))


def _metrics(entry: dict[str, Any], tasks: list[str], gain: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(10, 351, 10):
        level = np.exp(-step / 90) + 0.2 - gain
        rows.append({"step": step, **{f"loss/{t}": level + rng.normal(0, 0.03) for t in tasks}})
        if step % 50 == 0:
            rows.append(
                {
                    "step": step,
                    **{
                        f"val/{t}/{(p := TASKS[t]['protocols'][0])[0]}": BASE[p[0]]
                        * (1 + (1 if p[1] else -1) * (0.05 - level / 3))
                        for t in tasks
                    },
                }
            )
        if entry["label"] in ("pcgrad", "cagrad", "mod_squad_pcgrad"):
            pairs = [(a, b) for i, a in enumerate(tasks) for b in tasks[i + 1 :]]
            cosines = {f"gradient/cosine/{a}|{b}": float(np.tanh(rng.normal(0.1, 0.3))) for a, b in pairs}
            share = sum(v < 0 for v in cosines.values()) / max(len(cosines), 1)
            weights = {f"gradient/weight/{task}": float(rng.uniform(0.5, 1.5)) for task in tasks}
            whole = {"gradient/similarity": 0.7, "gradient/condition": 2.0 + step / 100, "gradient/turn": 20.0}
            rows.append({"step": step, **cosines, **weights, **whole, "gradient/conflicts": share})
    return rows


def examples(tasks: list[str], rng: np.random.Generator, n: int = 4, size: Any = (96, 128)) -> dict[str, Any]:
    """Returns the arrays of an examples.npz: a floor, a wall and a ball; predictions have noisy edges."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    arrays: dict[str, Any] = {"image": np.zeros((n, 3, *size), np.uint8)}
    for i in range(n):
        cx, cy, r = 30 + 22 * i, 40 + 6 * i, 18 + 3 * i
        for name, shift in (("target", 0.0), ("prediction", 2.5)):
            jitter = rng.normal(0, shift, size) if shift else 0
            ball = (x - cx) ** 2 + (y - cy) ** 2 < (r + jitter) ** 2
            ids = np.where(ball, 2, np.where(y > 64 + jitter, 4, 5)).astype(np.uint8)
            if name == "target":
                colour = np.array([(0, 0, 0), (0, 0, 0), (200, 90, 60), (0, 0, 0), (150, 140, 120), (110, 130, 160)])
                arrays["image"][i] = (colour[ids] + rng.normal(0, 6, (*size, 3))).clip(0, 255).transpose(2, 0, 1)
                ids[:4] = 255
            for task, value in _views(ids, ball, y, rng, shift).items():
                if task in tasks:
                    arrays.setdefault(f"{name}/{task}", []).append(value)
    return {key: np.stack(value) for key, value in arrays.items()}


def _views(ids: Any, ball: Any, y: Any, rng: np.random.Generator, shift: float) -> dict[str, Any]:
    normal = np.where(ids == 4, 1, 0)[None] * np.array([0, 1, 0])[:, None, None]
    normal = normal + (1 - normal[1:2]) * np.array([0.3, 0, 0.95])[:, None, None]
    depth = np.where(ball, 2.0, np.where(ids == 4, 5 - y / 30, 4.0)) + rng.normal(0, 0.05 * shift, y.shape)
    edge = (np.abs(np.diff(ids.astype(int), axis=1, prepend=ids[:, :1])) > 0).astype(np.float32)
    return {
        "semseg": ids,
        "depth": np.where(ids == 255, 255, depth)[None].astype(np.float32),
        "normals": (normal + rng.normal(0, 0.05 * shift, normal.shape)).astype(np.float32),
        "saliency": ball[None].astype(np.float32) * (1 - 0.1 * shift),
        "edges": edge[None],
        "count": np.int64(rng.integers(2)),
    }


if __name__ == "__main__":
    print(write_study(Path(sys.argv[1])))
