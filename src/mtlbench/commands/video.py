"""``mtlbench video``: what computation sharing keeps and saves over the frames of clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mtlbench.commands import look
from mtlbench.data import Collate, MTLDataModule
from mtlbench.errors import DataError, StoreError, SuiteError
from mtlbench.metrics.relative import delta_m
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.sharing.network import SharingNetwork
from mtlbench.networks.sharing.video import Frame, VideoTask, play
from mtlbench.networks.sharing.video_scores import VideoScores
from mtlbench.report import video as report
from mtlbench.run import LoadedRun, load_run
from mtlbench.store import write_json

METHOD = "computation_sharing"
THRESHOLDS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
DISTANCES = (1, 2, 4, 8)
TOGETHER = 10
"""Clips that run side by side."""

Player = Callable[[Sequence[Tensor]], Iterator[Frame]]
Record = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """One way of running all tasks over clips.

    Attributes:
        label: Name in tables and figures.
        threshold: θ, or None where nothing is shared.
        distance: Frames from one key frame to the next; 1 where nothing is shared.
        player: Runs the frames of some clips.
    """

    label: str
    threshold: float | None
    distance: int
    player: Player


def run(
    results: Path, suite: str, *, seed: int | None = None, thresholds: Sequence[float] | None = None,
    distances: Sequence[int] | None = None, blocks: int | None = None, clips: int | None = None,
) -> int:  # fmt: skip
    """Measures a finished row of computation_sharing on the clips of the suite's data; writes JSON and HTML.

    Args:
        results: Folder of results.
        suite: Name or path of the suite.
        seed: Whose runs; None for the first seed of the study.
        thresholds: θ >= 0 each.
        distances: Frames between key frames, >= 1 each.
        blocks: Blocks in which sub-tasks are held to the base between key frames; None for half of them.
        clips: Use the first ones only; None for all.

    Raises:
        MtlbenchError: The row is not finished, the data has no clips, or a value is out of range.
    """
    root, study = look.study_of(results, suite)
    seed = study["seeds"][0] if seed is None else seed
    base, runs = _shared_runs(root, study, seed)
    data = runs[base].data
    data.tasks = {task: runs[task].method.tasks[task] for task in runs}
    tasks = {task: _video_task(loaded, task) for task, loaded in runs.items()}
    depth = len(tasks[base].encoder.model.blocks)
    thresholds, distances = list(thresholds or THRESHOLDS), list(distances or DISTANCES)
    blocks = depth // 2 if blocks is None else blocks
    _check(data, thresholds, blocks, depth)
    alone = _baseline_runs(root, study, seed, list(tasks))
    ways = list(_ways(tasks, base, thresholds, distances, blocks, str(study["baseline"]), alone))
    points = measure(ways, data, frame_by_frame(tasks), clips)
    record = {
        "format": 1, "suite": study["suite"], "seed": seed, "split": data.SPLITS[-1], "base": base,
        "shared_blocks": blocks, "blocks": depth, "clips": points[0].pop("clips"),
        "clip_length": data.clip_length, "tasks": _protocols(data), "baseline": points[0]["label"],
        "points": _with_gains(points, data),
    }  # fmt: skip
    written = [root / f"video-s{seed}.{kind}" for kind in ("json", "html")]
    write_json(written[0], record)
    written[1].write_text(report.page(record), encoding="utf-8")
    _print(record)
    print("Written: " + ", ".join(map(str, written)))
    return 0


def measure(ways: Sequence[Way], data: MTLDataModule, free: Player, clips: int | None = None) -> list[Record]:
    """Returns one record per way, see `VideoScores.compute`, with ``label``, ``threshold`` and ``distance``.

    Args:
        ways: What to measure.
        data: Data with clips; its last split is used.
        free: The same networks without sharing, which drift is measured from.
        clips: Use the first ones only.
    """
    samples, length, collate = data.samples(data.SPLITS[-1]), data.clip_length, Collate(data.tasks)
    count = min(clips or len(samples), len(samples) // length)
    scores = [VideoScores(data.tasks, min(way.distance, length)) for way in ways]
    for first in range(0, count, TOGETHER):
        some = range(first, min(first + TOGETHER, count))
        batches = [collate([samples[clip * length + t] for clip in some]) for t in range(length)]
        images = [batch["image"] for batch in batches]
        truth = [frame.predictions for frame in free(images)]
        for way, score in zip(ways, scores, strict=True):
            for batch, frame, apart in zip(batches, way.player(images), truth, strict=True):
                score.update(frame, apart, batch["targets"])
    return [
        {"label": way.label, "threshold": way.threshold, "distance": way.distance, "clips": count, **score.compute()}
        for way, score in zip(ways, scores, strict=True)
    ]


def frame_by_frame(tasks: Mapping[str, VideoTask]) -> Player:
    """Returns the way of running every task by itself and every frame anew."""

    def player(images: Sequence[Tensor]) -> Iterator[Frame]:
        each = [play({n: t}, n, images, threshold=0, distance=1, shared_blocks=0) for n, t in tasks.items()]
        for frames in zip(*each, strict=True):
            predictions = {n: p for frame in frames for n, p in frame.predictions.items()}
            yield Frame(0, predictions, {n: m for frame in frames for n, m in frame.macs.items()})

    return player


def _ways(
    tasks: Mapping[str, VideoTask], base: str, thresholds: Sequence[float], distances: Sequence[int], blocks: int,
    baseline: str, alone: Mapping[str, VideoTask],
) -> Iterator[Way]:  # fmt: skip
    """Yields the baseline first, then everything without sharing, then thresholds by distances."""
    if alone:
        yield Way(baseline, None, 1, frame_by_frame(alone))
    yield Way("frame by frame", None, 1, frame_by_frame(tasks))

    def player(threshold: float, distance: int) -> Player:
        return lambda images: play(tasks, base, images, threshold=threshold, distance=distance, shared_blocks=blocks)

    for distance in distances:
        for threshold in thresholds:
            yield Way(METHOD, threshold, distance, player(threshold, distance))


def _shared_runs(root: Path, study: Record, seed: int) -> tuple[str, dict[str, LoadedRun]]:
    """Returns the base task and the run of every task."""
    rows = [row for row in study["rows"] if row["method"] == METHOD and row["seed"] == seed]
    if not rows or not rows[0]["serving"]:
        raise StoreError(
            f"Video needs a finished row of {METHOD}. {root / 'study.json'} has none for seed {seed}; its seeds are "
            f"{study['seeds']}. Add the method to the suite and run it."
        )
    runs = {task: load_run(root / run) for task, run in rows[0]["serving"].items()}
    sources = {(loaded.spec.sources or {}).get("base", {}).get("run") for loaded in runs.values()}
    base = next((task for task, run in rows[0]["serving"].items() if run in sources), None)
    return base or next(iter(runs)), runs


def _baseline_runs(root: Path, study: Record, seed: int, tasks: Sequence[str]) -> dict[str, VideoTask]:
    """Returns the single-task networks of all tasks, or nothing where one is not there."""
    rows = [row for row in study["rows"] if row["label"] == study["baseline"] and row["seed"] == seed]
    serving = rows[0]["serving"] if rows else {}
    if not all(task in serving for task in tasks):
        return {}
    return {task: _video_task(load_run(root / serving[task]), task) for task in tasks}


def _video_task(loaded: LoadedRun, task: str) -> VideoTask:
    network: Any = loaded.method.network
    if isinstance(network, SharingNetwork):
        return VideoTask.changed(network, task)
    if isinstance(network, DenseNetwork):
        return VideoTask.alone(network, task)
    raise StoreError(
        f"Sharing on video takes plain networks with one encoder. Run {loaded.result['run_id']} has a "
        f"{type(network).__name__}."
    )


def _check(data: MTLDataModule, thresholds: Sequence[float], blocks: int, depth: int) -> None:
    if data.clip_length < 2:
        raise DataError(
            f"Video needs clips. {type(data).__name__} has single images here. Choose a suite whose data has frames, "
            "for example video (data.options.frames)."
        )
    if not all(0 <= theta < float("inf") for theta in thresholds) or not 0 <= blocks <= depth:
        raise SuiteError(
            f"Thresholds must be finite and >= 0, and blocks between 0 and the encoder's {depth}; found "
            f"{list(thresholds)} and {blocks}."
        )


def _protocols(data: MTLDataModule) -> Record:
    """Returns the first protocol of every task: what Δm is made of."""
    first: dict[str, Any] = {name: task.metric().protocols[0] for name, task in data.tasks.items()}  # type: ignore
    return {n: {"protocol": p.id, "higher_is_better": p.higher_is_better, "unit": p.unit} for n, p in first.items()}


def _with_gains(points: list[Record], data: MTLDataModule) -> list[Record]:
    """Adds ``delta_m`` against the first point, in per cent; None where a baseline is 0."""
    about = _protocols(data)
    first = {n: [float(point["scores"][n][about[n]["protocol"]]) for point in points] for n in about}
    base = {n: values[0] for n, values in first.items()}
    higher = {n: about[n]["higher_is_better"] for n in about}
    for i, point in enumerate(points):
        known = all(base.values())
        point.pop("clips", None)
        point["delta_m"] = delta_m({n: v[i] for n, v in first.items()}, base, higher) if known else None
    return points


def _print(record: Record) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "θ", "distance", "Δm %", "MFLOPs per frame", "", "drift", box=None, header_style="bold")
    whole = sum(record["points"][0]["flops"].values())
    for point in record["points"]:
        flops, last = sum(point["flops"].values()), point["lags"][-1]["drift"]
        gain = "-" if point["delta_m"] is None else f"{point['delta_m']:+.2f}"
        shown = ("", "") if point["threshold"] is None else (f"{point['threshold']:g}", str(point["distance"]))
        table.add_row(
            point["label"], *shown, gain, f"{flops / 1e6:.1f}", f"{flops / whole:.0%}",
            "-" if point["threshold"] is None else f"{sum(last.values()) / len(last):.3f}",
        )  # fmt: skip
    console = Console()
    console.print(
        f"{record['clips']} clips of {record['clip_length']} frames; base task {record['base']}; Δm against "
        f"{record['baseline']}; drift: relative change of predictions in the last frame before a key frame"
    )
    console.print(table)
