"""Measures score and cost of computation sharing over the frames of clips."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlbench.data import MTLDataModule
from mtlbench.errors import DataError, StoreError, SuiteError, unknown_name
from mtlbench.metrics.relative import delta_m
from mtlbench.networks.dense import DenseNetwork
from mtlbench.networks.sharing.network import SharingNetwork
from mtlbench.networks.sharing.video import VideoTask
from mtlbench.training import clip_evaluation
from mtlbench.training.clip_evaluation import Way
from mtlbench.training.load import LoadedRun, load_run

METHOD = "computation_sharing"
THRESHOLDS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
DISTANCES = (1, 2, 4, 8)

Record = dict[str, Any]


@dataclass(frozen=True)
class Shared:
    """The finished networks of a row with one seed.

    Attributes:
        seed: Whose.
        base: The base task.
        data: Data of the base's run, with all tasks.
        tasks: Network of every task.
        alone: Networks of the baseline; empty if one is missing with any seed.
    """

    seed: int
    base: str
    data: MTLDataModule
    tasks: dict[str, VideoTask]
    alone: dict[str, VideoTask]


def measure_row(
    root: Path,
    study: Record,
    *,
    label: str | None = None,
    seeds: Sequence[int] | None = None,
    thresholds: Sequence[float] | None = None,
    distances: Sequence[int] | None = None,
    blocks: int | None = None,
    limit: int | None = None,
    allow: Collection[str] = (),
    watch: Callable[[str], None] = lambda line: None,
) -> Record:
    """Measures a finished row of computation_sharing on the clips of the suite's data.

    Args:
        root: ``results/<suite>``.
        study: Its ``study.json``.
        label: The row; None for the first one of computation_sharing.
        seeds: Seeds of the runs; None for all of the study.
        thresholds: θ >= 0 each.
        distances: Frames from key frame to key frame, >= 1 each; at most a clip.
        blocks: Blocks in which sub-tasks are held to the base between key frames; None for half of them.
        limit: Use the first clips only; None for all.
        allow: See `load_run`.
        watch: Called with a line after every seed.

    Raises:
        MtlbenchError: The row is not finished, the data has no clips, or a value is out of range.
    """
    label = _label(study, label)
    seeds = _unique(seeds or study["seeds"])
    first = _load(root, study, label, seeds, allow=allow)
    depth = len(first.tasks[first.base].encoder.model.blocks)
    thresholds, length = _unique(thresholds or THRESHOLDS), first.data.clip_length
    distances = _unique(min(distance, length) for distance in distances or DISTANCES)  # A clip has one key frame.
    blocks = depth // 2 if blocks is None else blocks
    _check(first.data, thresholds, distances, blocks, depth)
    count = clip_evaluation.count(first.data, limit)
    points: list[Record] = []
    for seed in seeds:  # One family of networks at a time is in memory.
        family = first if seed == first.seed else _load(root, study, label, seeds, seed, allow=allow)
        ways = list(_ways(family, label, thresholds, distances, blocks, str(study["baseline"])))
        points = points or [{**way.point, "seeds": []} for way in ways]
        measured = clip_evaluation.measure(ways, family.data, clip_evaluation.frame_by_frame(family.tasks), count)
        for point, found in zip(points, measured, strict=True):
            point["seeds"].append(found)
        watch(f"Seed {seed}: {count} clips, {len(ways)} ways")
    protocols = _first_protocols(first.data, "metric")
    return {
        "format": 2,
        "suite": study["suite"],
        "label": label,
        "seeds": seeds,
        "split": first.data.SPLITS[-1],
        "base": first.base,
        "shared_blocks": blocks,
        "blocks": depth,
        "clips": count,
        "clip_length": length,
        "tasks": protocols,
        "monitors": _first_protocols(first.data, "monitor"),
        "baseline": points[0]["label"],
        "points": _with_gains(points, protocols),
    }


def _ways(
    family: Shared, label: str, thresholds: Sequence[float], distances: Sequence[int], blocks: int, baseline: str
) -> Iterator[Way]:
    """Yields the baseline first, then everything without sharing, then thresholds by distances."""
    if family.alone:
        yield Way(baseline, clip_evaluation.frame_by_frame(family.alone))
    yield Way("frame by frame", clip_evaluation.frame_by_frame(family.tasks))
    for distance in distances:
        for threshold in thresholds:
            player = clip_evaluation.sharing(family.tasks, family.base, threshold, distance, blocks)
            yield Way(label, player, threshold, distance)


def _label(study: Record, label: str | None) -> str:
    """Returns the wanted row's label, or that of the first one that shares computation."""
    known = list(dict.fromkeys(row["label"] for row in study["rows"] if row["method"] == METHOD))
    if not known:
        raise StoreError(
            f"Video needs a row of {METHOD}. The study of {study['suite']} has none. Add the method to the suite and "
            "run it."
        )
    if label is not None and label not in known:
        raise StoreError(unknown_name(f"row of {METHOD}", label, known))
    return label or known[0]


def _load(
    root: Path,
    study: Record,
    label: str,
    seeds: Sequence[int],
    seed: int | None = None,
    *,
    allow: Collection[str] = (),
) -> Shared:
    """Loads the networks of one of the seeds, by default of the first; refuses them all if one has none."""
    seed = seeds[0] if seed is None else seed
    if missing := [each for each in seeds if not _serving(study, label, each)]:
        raise StoreError(
            f"Video needs finished runs. {label} in {root / 'study.json'} has none for seed {missing[0]}; its seeds "
            f"are {study['seeds']}. Run the suite first: make bench SUITE={study['suite']}"
        )
    serving = _serving(study, label, seed)
    runs = {task: load_run(root / run, allow=allow) for task, run in serving.items()}
    sources = {(loaded.spec.sources or {}).get("base", {}).get("run") for loaded in runs.values()}
    base = next((task for task, run in serving.items() if run in sources), next(iter(runs)))
    data = runs[base].data
    data.tasks = {task: loaded.method.tasks[task] for task, loaded in runs.items()}
    tasks = _video_tasks(runs)
    for task in tasks.values():  # The base's run does not hold the arguments of its sub-tasks.
        task.encoder.set_factors(_layers(runs))
    # Without a baseline, curves are drawn against the networks run frame by frame.
    whole = all(set(runs) <= set(_serving(study, study["baseline"], each)) for each in seeds)
    single = _serving(study, study["baseline"], seed)
    alone = {task: load_run(root / single[task], allow=allow) for task in runs} if whole else {}
    return Shared(seed, base, data, tasks, _video_tasks(alone))


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _serving(study: Record, label: str, seed: int) -> dict[str, str]:
    """Returns the run of every task in a row, nothing where the row is not finished."""
    rows = [row for row in study["rows"] if row["label"] == label and row["seed"] == seed]
    return rows[0]["serving"] if rows else {}


def _layers(runs: Mapping[str, LoadedRun]) -> Mapping[str, float]:
    """Returns the factors on θ by layer that the row was given."""
    given = (loaded.spec.method["arguments"].get("layers") for loaded in runs.values())
    return next(filter(None, given), {})


def _video_tasks(runs: Mapping[str, LoadedRun]) -> dict[str, VideoTask]:
    return {task: _video_task(loaded, task) for task, loaded in runs.items()}


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


def _check(data: MTLDataModule, thresholds: Sequence[float], distances: Sequence[int], blocks: int, depth: int) -> None:
    if data.clip_length < 2:
        raise DataError(
            f"Video needs clips. {type(data).__name__} has single images here. Choose a suite whose data has frames, "
            "for example video (data.options.frames)."
        )
    known = all(0 <= theta < float("inf") for theta in thresholds) and all(distance >= 1 for distance in distances)
    if not known or not 0 <= blocks <= depth:
        raise SuiteError(
            "Thresholds must be finite and >= 0, distances at least 1, and blocks between 0 and the encoder's "
            f"{depth}; found {list(thresholds)}, {list(distances)} and {blocks}."
        )


def _first_protocols(data: MTLDataModule, kind: str) -> Record:
    """Returns the first protocol of every task's ``metric``, which Δm is made of, or ``monitor``."""
    first: dict[str, Any] = {name: getattr(task, kind)().protocols[0] for name, task in data.tasks.items()}
    return {n: {"protocol": p.id, "higher_is_better": p.higher_is_better, "unit": p.unit} for n, p in first.items()}


def _with_gains(points: list[Record], protocols: Mapping[str, Record]) -> list[Record]:
    """Adds ``delta_m`` to every seed, against the first point's mean over seeds, in per cent; None where that is 0."""
    up = {name: about["higher_is_better"] for name, about in protocols.items()}

    def first(found: Record) -> dict[str, float]:
        return {name: float(found["scores"][name][about["protocol"]]) for name, about in protocols.items()}

    baseline = [first(found) for found in points[0]["seeds"]]
    base = {name: math.fsum(scores[name] for scores in baseline) / len(baseline) for name in protocols}
    for point in points:
        for found in point["seeds"]:
            found["delta_m"] = delta_m(first(found), base, up) if all(base.values()) else None
    return points
