"""Active sampling of source tasks where the answer is known, on two ranks, resumed, and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtlbench.data_modules.linear import Linear, representation
from mtlbench.data_modules.union import Union
from mtlbench.errors import MtlbenchError
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from mtlbench.tasks.inputs import VECTORS
from mtlbench.testing import TOLERANCE, difference, toy_spec, trained

HEADS = {"target": [1, 0, 0], "same": [1, 0, 0], "second": [0, 1, 0], "third": [0, 0, 1]}
STREAMS = {
    name: {
        "module": "data_modules.linear:Linear",
        "options": {"task": name, "head": head, "features": 6, "train": 200, "val": 8, "test": 8},
    }
    for name, head in HEADS.items()
}
ACTIVE = {"rule": "active", "target": "target", "rounds": 3}


def spec_of(mixing: Any, target: str = "uniform", **changes: Any) -> RunSpec:
    options = {"streams": STREAMS, "mixing": mixing, "slots": 2}
    tasks = {name: task.describe() for name, task in Union.tasks_of(options).items()}
    spec = toy_spec(target, inputs=VECTORS, evaluate_every=0, **changes)
    return replace(spec, tasks=tasks, data={"module": "data_modules.union:Union", "options": options})


def shares(folder: Path, spec: RunSpec) -> list[dict[str, float]]:
    """Returns the probabilities of all streams after every step."""
    rows = (RunFolder(folder, spec.run_id).path / "metrics.jsonl").read_text().splitlines()
    return [{name: json.loads(row)[f"mixing/{name}"] for name in HEADS} for row in rows if "mixing/same" in row]


def test_the_source_with_the_targets_head_is_found_on_ranks_and_after_a_resume(pool: Any, tmp_path: Path) -> None:
    spec = spec_of(ACTIVE, steps=14)
    one = trained(spec, str(tmp_path / "one"))
    found = shares(tmp_path / "one", spec)
    even = [all(p == pytest.approx(1 / 4) for p in row.values()) for row in found]
    assert even == [True] * 2 + [False] * 12, "rounds of 2, 4 and 8 steps"
    assert found[5] == pytest.approx(found[2]) and found[6] != pytest.approx(found[2])
    after = found[-1]
    assert after["target"] == pytest.approx(1 / 4) and sum(after.values()) == pytest.approx(1)
    assert after["same"] / (after["same"] + after["second"] + after["third"]) > 0.9
    assert trained(spec, str(tmp_path / "broken"), stop_at=5) is None
    assert difference(one, trained(spec, str(tmp_path / "broken"))) == 0
    assert difference(one, pool.call(trained, spec, str(tmp_path / "two"), world=2)[0]) <= TOLERANCE
    assert shares(tmp_path / "two", spec)[-1] == pytest.approx(after)


def test_a_run_without_the_target_or_without_sources_draws_uniformly(tmp_path: Path) -> None:
    spec = spec_of(ACTIVE, steps=4)
    for tasks in (["same", "second"], ["target"]):
        assert trained(spec.with_tasks(*tasks), str(tmp_path)) is not None


def test_networks_without_a_common_representation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MtlbenchError, match="This network names none.*one shared trunk"):
        trained(spec_of(ACTIVE, "ple", steps=4), str(tmp_path))


def test_what_is_refused_before_training() -> None:
    with pytest.raises(MtlbenchError, match="Unknown task of the streams 'targt'. Did you mean 'target'"):
        Union(streams=STREAMS, mixing={**ACTIVE, "target": "targt"})
    with pytest.raises(MtlbenchError, match="only stream with tasks"):
        Union(streams={"target": STREAMS["target"]}, mixing=ACTIVE)
    with pytest.raises(MtlbenchError, match="trainer.workers to 0"):
        Union(streams=STREAMS, mixing=ACTIVE, workers=1)
    for options in ({"head": []}, {"head": [1.0] * 7}, {"head": [float("nan")]}):
        with pytest.raises(MtlbenchError, match="head is a list of 1 to `features`"):
            Linear(features=6, **options)
    with pytest.raises(MtlbenchError, match="noise is a finite number from 0. Found.*noise=-1"):
        Linear(noise=-1)


def test_labels_are_the_head_times_the_representation() -> None:
    samples = Linear(head=[2, -1], features=6, noise=0.0, train=5).samples("train")
    b = representation(6, 2)
    assert b @ b.T == pytest.approx(np.eye(2))
    for index in range(5):
        x = samples[index]["inputs"].double().numpy()
        assert float(samples[index]["targets"]["linear"]) == pytest.approx(float([2, -1] @ (b @ x)), abs=1e-5)
