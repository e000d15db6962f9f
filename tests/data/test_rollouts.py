"""Rollouts: every episode once over all ranks, the same bits on each, and messages that name task and episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mtlbench.data.rollouts import Rollout, in_groups
from mtlbench.errors import DataError


class Counting:
    """Solved once the actions add up to the seed; raises where the seed is negative."""

    horizon = 5

    def reset(self, seed: int) -> Any:
        self.seed, self.total = seed, 0.0
        return np.array([self.total])

    def step(self, action: Any) -> tuple[Any, bool]:
        self.total += float(action[0])
        if self.seed < 0 and self.total >= 2:
            raise RuntimeError("the joint is broken")
        return np.array([self.total]), self.total == self.seed


def test_an_episode_counts_if_it_is_solved_before_the_horizon() -> None:
    rollout = Rollout("count", list(enumerate([1, 5, 6])), Counting)
    assert rollout.play(lambda seen: np.ones((len(seen), 1))) == 2


def test_every_forward_pass_holds_all_episodes_from_first_to_last_step() -> None:
    seen: list[Any] = []

    def policy(observations: Any) -> Any:
        seen.append(observations[:, 0].tolist())
        return np.ones((len(observations), 1))

    Rollout("count", list(enumerate([1, 3])), Counting).play(policy)
    assert seen == [[0, 0], [1, 1], [1, 2]], "a solved episode stays as it ended"


def test_groups_hold_each_episode_once() -> None:
    groups = in_groups("count", list(range(23)), Counting)
    assert [len(one.episodes) for one in groups] == [10, 10, 3]
    assert [number for one in groups for number, _ in one.episodes] == list(range(23))


@pytest.mark.parametrize(("seeds", "action", "fact"), [
    ([1, 9, -1], 1.0, "Task count, episode 2, step 2: RuntimeError: the joint is broken"),
    ([4, 5], float("nan"), "Task count, episode 0, step 1: the network's action is [nan]"),
])  # fmt: skip
def test_a_failure_names_task_and_episode(seeds: list[int], action: float, fact: str) -> None:
    with pytest.raises(DataError) as caught:
        Rollout("count", list(enumerate(seeds)), Counting).play(lambda seen: np.full((len(seen), 1), action))
    assert fact in str(caught.value) and "--retry" in str(caught.value)
