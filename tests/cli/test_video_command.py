"""From finished runs on clips to curves."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlbench.cli import video
from mtlbench.data_modules.scenes import Scenes
from mtlbench.errors import DataError, MtlbenchError, StoreError, SuiteError
from mtlbench.networks.sharing.video import Frame
from mtlbench.networks.sharing.video_scores import VideoScores, drift
from mtlbench.report.figures.video import drifts, figures, flops, gain, page
from mtlbench.runs import seal
from mtlbench.tasks import Depth
from mtlbench.training import clip_sharing
from tests.support.command_line import mtlbench

SUITE = """
name: small
version: 1
data: {module: "data_modules.scenes:Scenes", options: {size: 16, frames: 3, train: 4, val: 1, test: 5, cache: CACHE}}
tasks: {semseg: {}, depth: {}, normals: {}}
model:
  encoder: vit_tiny_patch16_224
  encoder_options: {patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2}
  image_size: [16, 16]
  decoder_channels: 8
trainer: {steps: 12, batch_size: 4, diagnose_every: 0}
floor: false
methods: [single_task, {name: computation_sharing, threshold: 0.1, thresholds: [0.1], layers: {block1: 0.5}}]
seeds: [0, 1]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("video")
    (place / "small.yaml").write_text(SUITE.replace("CACHE", str(place / "cache")))
    answer = mtlbench(place, "run", "small.yaml", "--method", "single_task computation_sharing")
    assert answer.code == 0, answer.text
    return place / "results"


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    assert measure(folder, "small", threshold=[0.0, 0.1, 0.5], distance=[1, 2, 99, 3], blocks=1) == 0
    return written(folder)


def measure(folder: Path, suite: str, **options: Any) -> int:
    """Runs the command with its options as keywords; errors are raised."""
    defaults: dict[str, Any] = dict.fromkeys(("label", "seed", "threshold", "distance", "blocks", "clips")) | {
        "allow": []
    }
    return video.run(argparse.Namespace(results=folder, suite=suite, **{**defaults, **options}))


def written(folder: Path, label: str = "computation_sharing") -> dict[str, Any]:
    return json.loads((folder / f"small/video-{label}.json").read_text())


def point(
    record: dict[str, Any], threshold: float | None, distance: int, label: str = "", seed: int = 0
) -> dict[str, Any]:
    """Returns what one way gave with one seed."""
    found = next(
        p for p in record["points"] if (p["threshold"], p["distance"]) == (threshold, distance) and label in p["label"]
    )
    return found["seeds"][record["seeds"].index(seed)]


def stored(folder: Path, method: str) -> dict[str, dict[str, float]]:
    """Returns what the runs of the first seed themselves scored on the same frames, by task."""
    results = [json.loads(path.read_text()) for path in (folder / "small").glob(f"{method}-s0-*/result.json")]
    return {task: scores for result in results for task, scores in result["scores"].items()}


def test_without_sharing_across_time_scores_are_those_of_the_runs(folder: Path, record: dict[str, Any]) -> None:
    assert record["base"] == "semseg" and (record["clips"], record["clip_length"]) == (5, 3)
    single, shared = stored(folder, "single_task"), stored(folder, "computation_sharing")
    assert set(single) == {"semseg", "depth", "normals"} and set(shared) == {"depth", "normals"}
    for task, scores in single.items():
        assert point(record, None, 1, "single_task")["scores"][task] == pytest.approx(scores, rel=1e-5)
    for task, scores in shared.items():
        assert point(record, 0.1, 1)["scores"][task] == pytest.approx(scores, rel=1e-5)
    assert point(record, 0.1, 1)["scores"]["semseg"] == pytest.approx(single["semseg"], rel=1e-5)


def test_base_and_sub_tasks_have_the_factors_of_their_row(folder: Path) -> None:
    study = json.loads((folder / "small/study.json").read_text())
    tasks = clip_sharing._load(folder / "small", study, "computation_sharing", [0, 1]).tasks
    assert {task.encoder.factors["block1.qkv"] for task in tasks.values()} == {0.5} and len(tasks) == 3


def test_gains_are_against_the_mean_of_single_task_runs(record: dict[str, Any]) -> None:
    assert record["baseline"] == "single_task" and record["seeds"] == [0, 1]

    def first(threshold: float | None, distance: int, task: str, seed: int) -> float:
        label = "single_task" if threshold is None else ""
        return point(record, threshold, distance, label, seed)["scores"][task][record["tasks"][task]["protocol"]]

    for threshold, distance in ((None, 1), (0.5, 3)):
        for seed in (0, 1):
            gains = []
            for task, kind in record["tasks"].items():
                before = sum(first(None, 1, task, s) for s in (0, 1)) / 2
                gain = (first(threshold, distance, task, seed) - before) / before
                gains.append(100 * gain * (1 if kind["higher_is_better"] else -1))
            label = "single_task" if threshold is None else ""
            assert point(record, threshold, distance, label, seed)["delta_m"] == pytest.approx(sum(gains) / 3)


def test_means_and_intervals_are_over_seeds(record: dict[str, Any]) -> None:
    there = next(p for p in record["points"] if (p["threshold"], p["distance"]) == (0.5, 3))
    one, two = there["seeds"]
    found = gain(there)
    assert found and found.mean == pytest.approx((one["delta_m"] + two["delta_m"]) / 2) and found.n == 2
    assert one["delta_m"] != two["delta_m"] and found.low < found.mean < found.high
    assert flops(there) == pytest.approx(sum(sum(s["flops"].values()) for s in (one, two)) / 2)
    assert drifts(there)[2] == pytest.approx(sum(sum(s["lags"][2]["drift"].values()) / 3 for s in (one, two)) / 2)
    figure = figures(record)["Accuracy against computation"]
    assert any(max(trace.error_y.array) > 0 for trace in figure.data)


def test_threshold_zero_changes_nothing_and_saves_nothing(record: dict[str, Any]) -> None:
    free = point(record, None, 1, "frame by frame")
    for distance in (1, 2, 3):
        shared = point(record, 0.0, distance)
        for task, scores in free["scores"].items():
            assert shared["scores"][task] == pytest.approx(scores, rel=1e-4)
        assert all(drift_ < 1e-5 for lag in shared["lags"] for drift_ in lag["drift"].values())
    whole = sum(free["flops"].values())
    assert whole == sum(point(record, None, 1, "single_task")["flops"].values())
    assert sum(point(record, 0.5, 3)["flops"].values()) < 0.7 * whole


def test_lags_begin_at_key_frames(record: dict[str, Any]) -> None:
    for distance, lags in ((1, [0]), (2, [0, 1]), (3, [0, 1, 2])):
        assert [lag["lag"] for lag in point(record, 0.5, distance)["lags"]] == lags
    key, later = point(record, 0.5, 3)["lags"][0], point(record, 0.5, 3)["lags"][2]
    assert key["drift"]["semseg"] == pytest.approx(0, abs=1e-6) and later["drift"]["semseg"] > 1e-3
    assert later["flops"]["semseg"] < key["flops"]["semseg"]


def test_the_page_needs_no_network_and_shows_names_as_they_are(record: dict[str, Any]) -> None:
    drawn = figures(record)
    assert [title.partition(",")[0] for title in drawn] == [
        "Accuracy against computation",
        "Drift over frames since the key frame",
        "Scores over frames since the key frame",
    ]
    curves = [trace for trace in drawn["Accuracy against computation"].data if trace.mode == "lines+markers"]
    assert len(curves) == 3 and all(len(trace.x) == 3 for trace in curves)
    panels = [
        each.text for each in drawn["Scores over frames since the key frame, key frames 3 apart"].layout.annotations
    ]
    assert panels[:2] == ["semseg: semseg_miou@1 ↑", "depth: depth_rmse@1 ↓"]
    text = page({**record, "suite": "<b>small</b>"})
    assert "not realised" in text
    assert "<h1>&lt;b&gt;small" in text and 'src="http' not in text
    short = page({**record, "points": [p for p in record["points"] if p["distance"] == 1]})
    assert "Drift over" not in short


def test_one_seed_and_the_first_clips_may_do(folder: Path) -> None:
    assert measure(folder, "small", seed=[1, 1], threshold=[0.1], distance=[3], clips=2) == 0
    few = written(folder)
    assert few["seeds"] == [1] and few["clips"] == 2 and few["shared_blocks"] == 1 and len(few["points"]) == 3
    found = gain(few["points"][-1])
    assert found and found.low is None


def test_another_row_has_files_of_its_own(folder: Path) -> None:
    path = folder / "small/study.json"
    study, text = json.loads(path.read_text()), path.read_text()
    rows = [{**row, "label": "less θ"} for row in study["rows"] if row["method"] == "computation_sharing"]
    path.write_text(json.dumps(seal.sealed({**study, "rows": [*study["rows"], *rows]})))
    try:
        assert measure(folder, "small", label="less θ", seed=[0], threshold=[0.1], distance=[2], clips=1) == 0
    finally:
        path.write_text(text)
    assert written(folder, "less-θ")["points"][-1]["label"] == "less θ"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": [0, 4]}, StoreError, "none for seed 4"),
        ({"label": "computation_sharin"}, StoreError, "Did you mean 'computation_sharing'"),
        ({"distance": [0]}, SuiteError, "at least 1"),
        ({"threshold": [math.inf]}, SuiteError, "finite"),
        ({"threshold": [math.nan]}, SuiteError, "finite"),
        ({"blocks": 3}, SuiteError, "between 0 and the encoder's 2"),
    ],
)
def test_what_cannot_be_is_refused(
    folder: Path, options: dict[str, Any], error: type[MtlbenchError], message: str
) -> None:
    with pytest.raises(error, match=message):
        measure(folder, "small", **options)


def test_single_images_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scenes, "clip_length", property(lambda data: 1, lambda data, value: None))
    with pytest.raises(DataError, match="single images"):
        measure(folder, "small")


def test_scores_by_hand() -> None:
    """Two frames of two clips: sums over all, means by lag."""
    scores = VideoScores({"depth": Depth("depth")}, 2)
    free = torch.full((2, 1, 2, 3), 2.0)
    label = torch.full((2, 1, 2, 3), 2.0)
    for lag, error, macs in ((0, 0.0, 5.0), (1, 1.0, 1.0)):
        frame = Frame(lag, {"depth": free + error}, {"depth": torch.tensor([macs, 3 * macs], dtype=torch.float64)})
        scores.update(frame, {"depth": free}, {"depth": label})
    found = scores.compute()
    assert found["flops"] == {"depth": 2 * (5 + 15 + 1 + 3) / 4}
    assert found["scores"]["depth"]["depth_rmse@1"] == pytest.approx(math.sqrt(0.5))
    assert [lag["scores"]["depth"]["depth_rmse@1"] for lag in found["lags"]] == pytest.approx([0, 1])
    assert [lag["drift"]["depth"] for lag in found["lags"]] == pytest.approx([0, 0.5])
    assert [lag["flops"]["depth"] for lag in found["lags"]] == [20, 4]


def test_drift_is_relative_per_image() -> None:
    free = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert drift(free + torch.tensor([[0.0, 5.0], [0.5, 0.0]]), free).tolist() == pytest.approx([1.0, 0.5])
