"""MT10 on a stand-in for the simulator: goals, standardised observations, the cache, and what to install."""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from data_modules import mt10
from data_modules.mt10 import MT10, NAMES
from mtlbench.errors import DataError, SuiteError
from mtlbench.testing import check_data_module

SMALL: dict[str, Any] = {"demonstrations": 3, "streams": ["reach", "push"], "episodes": 2, "noise": 0.0, "horizon": 30}


class Hand:
    """A hand that moves a tenth of each action; solved at the goal, which the last three entries hold."""

    built = 0

    def __init__(self, seed: int):
        type(self).built += 1
        self._freeze_rand_vec, self.seeded_rand_vec = True, False

    def seed(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def reset(self) -> tuple[Any, dict[str, Any]]:
        assert not self._freeze_rand_vec and self.seeded_rand_vec, "a frozen state is the same in every episode"
        self.hand, self.goal = np.zeros(3), self.generator.uniform(-0.5, 0.5, 3)
        return self.observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action.shape == (4,) and (np.abs(action) <= 1).all()
        self.hand = self.hand + 0.1 * action[:3]
        solved = np.linalg.norm(self.hand - self.goal) < 0.02
        return self.observation(), 0.0, False, False, {"success": float(solved)}

    def observation(self) -> Any:
        return np.concatenate([self.hand, np.full(33, 7.0), self.goal])


class Script:
    """The expert: it needs the goal."""

    def get_action(self, seen: Any) -> Any:
        assert seen[36:].any(), "the expert sees the goal"
        return np.append(10 * (seen[36:] - seen[:3]), 3.0)


@pytest.fixture(autouse=True)
def simulator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = [f"{name.replace('_', '-')}-v3" for name in NAMES]
    package, policies = ModuleType("metaworld"), ModuleType("metaworld.policies")
    package.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE = {  # type: ignore[attr-defined]
        f"{name}-goal-observable": Hand for name in names
    }
    policies.ENV_POLICY_MAP = dict.fromkeys(names, Script)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "metaworld", package)
    monkeypatch.setitem(sys.modules, "metaworld.policies", policies)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", lambda name: "3.1")
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path / "cache"))


def test_it_keeps_the_contract_of_data_modules() -> None:
    findings = check_data_module("data_modules.mt10:MT10", None, **SMALL)
    assert [finding.detail for finding in findings if not finding.ok] == []


def test_observations_are_standardised_alike_in_demonstrations_and_rollouts() -> None:
    data = MT10(**SMALL)
    seen = np.concatenate([data.trajectories(task, "train").observations for task in SMALL["streams"]])
    assert np.abs(seen.mean(0)).max() < 1e-5 and np.allclose(seen.std(0)[[0, 1, 2, 36, 37, 38]], 1, atol=1e-4)
    assert (seen[:, 3:36] == 0).all(), "entries that never change stay small"
    world, arm = data.open("reach"), mt10.Arm("reach", 30)
    mean, std = data._scale
    assert np.allclose(world.reset(5), (arm.reset(5) - mean) / std)
    assert np.allclose(world.step(np.ones(4))[0], (arm.step(np.ones(4))[0] - mean) / std)
    one = MT10(tasks={"reach": MT10.TASKS["reach"]}, **SMALL)
    assert np.array_equal(one._scale[0], mean), "a run on one task sees what all others see"


def test_a_hidden_goal_is_zero_for_the_network_alone() -> None:
    data = MT10(goal="hidden", **SMALL)
    assert (data.trajectories("reach", "train").observations[:, 36:] == 0).all()
    world = data.open("reach")
    assert (world.reset(1)[36:] == 0).all() and (world.step(world.expert())[0][36:] == 0).all()


def test_episodes_differ_and_depend_on_their_seed_alone() -> None:
    arm = mt10.Arm("reach", 30)
    first = arm.reset(3)
    arm.step(np.ones(4))
    assert np.array_equal(arm.reset(3), first) and not np.array_equal(arm.reset(4), first)
    assert arm.expert()[3] == 1.0, "actions are in the range that the arm obeys"


def test_demonstrations_are_simulated_once(tmp_path: Path) -> None:
    MT10(**SMALL).trajectories("reach", "train")
    built, files = Hand.built, list((tmp_path / "cache").iterdir())
    again = MT10(**SMALL).trajectories("reach", "train")
    assert Hand.built == built and len(files) == 2
    MT10(**{**SMALL, "noise": 0.1}).trajectories("reach", "train")
    assert Hand.built > built, "other noise, other demonstrations"
    for path in files:
        path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(MT10(**SMALL).trajectories("reach", "train").observations, again.observations)


def test_the_versions_of_the_simulator_identify_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    before = MT10(**SMALL).fingerprint()
    monkeypatch.setattr(metadata, "version", lambda name: "3.2")
    assert MT10(**SMALL).fingerprint() != before


def test_without_the_simulator_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "metaworld" else object())
    data = MT10(**SMALL)
    (line,) = data.missing()
    assert "metaworld, which is not installed" in line and 'pip install "mtlbench[control]"' in line
    with pytest.raises(DataError, match="pip install"):
        data.trajectories("reach", "val")


def test_observations_of_a_file_are_standardised(tmp_path: Path) -> None:
    data = MT10(**SMALL)
    raw = np.stack([mt10.Arm("reach", 30).reset(seed) for seed in (1, 2)])
    np.save(tmp_path / "seen.npy", raw)
    mean, std = data._scale
    assert torch.allclose(
        data.read(tmp_path / "seen.npy")[1]["inputs"].double(), torch.from_numpy((raw[1] - mean) / std), atol=1e-5
    )


@pytest.mark.parametrize("options", [{"goal": "far"}, {"horizon": 0}, {"horizon": 501}, {"horizon": True}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SuiteError, match=next(iter(options))):
        MT10(**options)
