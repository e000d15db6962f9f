"""Ranks divide the rollouts: each episode is played by one rank, with the actions that the task decodes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from mtlbench import distributed
from mtlbench.data.rollouts import in_groups
from mtlbench.metrics import Success
from mtlbench.tasks import Action
from mtlbench.training.rollouts import roll_out

PLAYED: Counter[int] = Counter()


class Once:
    """Solved by its first action if that is the seed."""

    horizon = 2

    def reset(self, seed: int) -> Any:
        PLAYED[seed] += 1
        self.seed = seed
        return np.array([float(seed)])

    def step(self, action: Any) -> tuple[Any, bool]:
        return np.array([-1.0]), action.tolist() == [self.seed]


class Parrot:
    """Acts as it observes, except for odd numbers."""

    tasks = {"echo": Action("echo", size=1)}
    device = torch.device("cpu")

    def __call__(self, inputs: torch.Tensor, tasks: list[str]) -> dict[str, torch.Tensor]:
        assert inputs.dtype == torch.float32 and tasks == ["echo"]
        return {"echo": torch.where(inputs % 2 == 0, inputs, -5.0)}


@pytest.mark.parametrize("world", [1, 2, 5])
def test_every_episode_is_played_once_by_some_rank(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    PLAYED.clear()
    rollouts, counts = in_groups("echo", list(range(23)), Once, size=4), Counter[str]()
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        metric = Success()
        roll_out(Parrot(), rollouts, {"echo": metric})  # type: ignore[arg-type]
        counts += Counter(solved=int(metric.solved), episodes=int(metric.episodes))
    assert PLAYED == Counter(range(23)) and counts == Counter(solved=12, episodes=23)
