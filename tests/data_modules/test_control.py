"""Control: experts, demonstrations and rollouts of the point mass, and runs that are scored by them."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_modules.control import PointMass
from data_modules.simulation.point_mass import RULES, World
from mtlbench.cli import predict
from mtlbench.data import Collate
from mtlbench.errors import DataError, SuiteError
from mtlbench.runs.spec import RunSpec
from mtlbench.runs.store import RunFolder
from mtlbench.tasks.inputs import VECTORS
from mtlbench.testing import toy_spec, trained

TASKS = ["reach", "gate"]
SMALL = {"streams": TASKS, "demonstrations": 3, "episodes": 12, "watch": 2}


def spec_of(target: str, options: dict[str, Any] | None = None, **changes: Any) -> RunSpec:
    """Returns a run on two tasks of the point mass."""
    spec = toy_spec(target, inputs=VECTORS, **changes)
    return replace(
        spec,
        tasks={name: PointMass.TASKS[name].describe() for name in TASKS},
        data={"module": "data_modules.control:PointMass", "options": options or SMALL},
        model={**spec.model, "inputs": {"features": 11}},
    )


def result_of(folder: Path, spec: RunSpec) -> Any:
    return RunFolder(folder, spec.run_id).result()


@pytest.mark.parametrize("name", RULES)
def test_the_expert_solves_every_task_and_a_constant_action_does_not(name: str) -> None:
    solved = {"expert": 0, "constant": 0}
    for seed in range(20):
        for who in solved:
            world = World([name])
            world.reset(seed)
            for _ in range(world.horizon):
                _, done = world.step(world.expert() if who == "expert" else np.array([0.3, 0.1]))
                if done:
                    solved[who] += 1
                    break
    assert solved["expert"] == 20 and solved["constant"] < 2 + 1


def test_an_obstacle_that_was_touched_cannot_be_made_good() -> None:
    world = World(["avoid"])
    world.reset(0)
    world.position = world.mark
    world.step(np.zeros(2))
    world.position = world.goal
    assert world.step(np.zeros(2))[1] is False


def test_a_wall_stops_the_agent_outside_the_gap() -> None:
    world = World(["gate"])
    world.reset(0)
    world.mark, world.position = (0.0, 0.5), (-0.02, 0.0)
    world.step(np.array([1.0, 0.0]))
    assert world.position == (-0.02, 0.0)
    world.position = (-0.02, 0.5)
    world.step(np.array([1.0, 0.0]))
    assert world.position[0] > 0


def test_demonstrations_have_the_experts_actions_and_the_observation_before() -> None:
    data = PointMass(**SMALL)
    samples = data.streams["reach"].samples("train")
    found = data.trajectories("reach", "train")
    starts = np.flatnonzero(found.first)
    assert len(starts) == 3 and samples[int(starts[1])]["previous"] is not None
    for index in (int(starts[1]), int(starts[1]) + 1):
        before = samples[index if index in starts else index - 1]["inputs"]
        assert torch.equal(samples[index]["previous"], before)
    batch = Collate({"reach": data.tasks["reach"]})([samples[index] for index in range(4)])
    assert torch.equal(batch["previous"][1:], batch["inputs"][:-1]) and batch["counts"]["reach"] == 4
    # The noise moves the agent, not the label: an action at rest points straight to the goal.
    sample = samples[0]
    way = sample["inputs"][9:] - sample["inputs"][:2]
    assert torch.allclose(sample["targets"]["reach"], way / way.norm(), atol=1e-5)


def test_splits_and_episodes_have_states_of_their_own() -> None:
    data = PointMass(**SMALL)
    starts = [tuple(data.trajectories("reach", split).observations[0]) for split in data.SPLITS]
    seeds = {split: [s for r in data.rollouts(split, final=True) for _, s in r.episodes] for split in ("val", "test")}
    assert len(set(starts)) == 3
    assert len({*seeds["val"], *seeds["test"]}) == 2 * 2 * 12
    assert [len(r.episodes) for r in data.rollouts("val")] == [2, 2] and not data.rollouts("train", final=True)


def test_success_is_exact_on_two_ranks_and_counts_each_episode_once(pool: Any, tmp_path: Path) -> None:
    spec = spec_of("uniform", steps=30, evaluate_every=15)
    trained(spec, str(tmp_path / "one"))
    pool.call(trained, spec, str(tmp_path / "two"), world=2)
    one, two = (result_of(tmp_path / name, spec) for name in ("one", "two"))
    for split in ("scores", "validation"):
        for task in TASKS:
            assert one[split][task]["success@1"] == two[split][task]["success@1"]
            assert (12 * one[split][task]["success@1"]).is_integer()
    rows = (RunFolder(tmp_path / "one", spec.run_id).path / "metrics.jsonl").read_text().splitlines()
    watched = [json.loads(row)["val/reach/success@1"] for row in rows if "val/reach/success@1" in row]
    assert watched and all((2 * share).is_integer() for share in watched), "two episodes while training"


def test_a_network_that_imitates_solves_what_the_floor_does_not(tmp_path: Path) -> None:
    options = {**SMALL, "demonstrations": 20}
    spec = spec_of("uniform", options, steps=300, batch_size=64, evaluate_every=0, clip=0.0)
    model = {**spec.model, "encoder_options": {"width": 64, "depth": 2}, "decoder_channels": 32}
    spec = replace(spec, model=model, optimiser={**spec.optimiser, "lr": 0.003})
    floor = spec_of("floor", options, steps=0, evaluate_every=0)
    for one in (spec, floor):
        assert RunFolder(tmp_path, one.run_id).claim(one)
        trained(one, str(tmp_path))
    assert result_of(tmp_path, spec)["scores"]["reach"]["success@1"] >= 0.6
    assert all(score["success@1"] < 0.1 for score in result_of(tmp_path, floor)["scores"].values())
    predicts_actions(tmp_path, RunFolder(tmp_path, spec.run_id).path, PointMass(**options))


def predicts_actions(folder: Path, run: Path, data: PointMass) -> None:
    """Checks that ``mtlbench predict`` writes the actions of all tasks as arrays, without being asked to."""
    found = data.trajectories("reach", "test")
    np.save(folder / "seen.npy", found.observations)
    words = {"run_folder": str(run), "images": [str(folder / "seen.npy")], "out": str(folder / "out"), "arrays": False}
    assert predict.run(argparse.Namespace(**words, allow=[])) == 0
    with np.load(folder / "out" / "seen.npz") as arrays:
        assert set(arrays) == set(TASKS) and arrays["reach"].shape == found.actions.shape
        assert np.abs(arrays["reach"] - found.actions).mean() < 0.3
    assert len((folder / "out" / "seen.csv").read_text().splitlines()) == 1 + len(found.actions)


@pytest.mark.parametrize(("options", "message"), [
    ({"streams": ["raech"]}, "reach"), ({"demonstrations": 0}, "demonstrations"), ({"episodes": True}, "episodes"),
    ({"noise": -1}, "noise"), ({"watch": -1}, "watch"),
])  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        PointMass(**options)


def test_too_much_noise_is_refused() -> None:
    with pytest.raises(DataError, match="avoid: .* Lower the option noise"):
        PointMass(streams=["avoid"], demonstrations=2, noise=50.0).trajectories("avoid", "train")


def test_observations_are_read_from_files(tmp_path: Path) -> None:
    data = PointMass(**SMALL)
    seen = data.trajectories("reach", "val").observations
    np.save(tmp_path / "seen.npy", seen)
    np.savetxt(tmp_path / "seen.csv", seen, delimiter=",")
    for name in ("seen.npy", "seen.csv"):
        found = data.read(tmp_path / name)
        assert len(found) == len(seen) and torch.allclose(found[1]["inputs"], torch.from_numpy(seen[1]))
    np.save(tmp_path / "short.npy", seen[:, :5])
    with pytest.raises(DataError, match=r"\(N, 11\)"):
        data.read(tmp_path / "short.npy")
