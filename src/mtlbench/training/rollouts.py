"""Lets a network act in the simulators of its data module, every episode on one rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mtlbench import distributed
from mtlbench.data.rollouts import Array, Policy, Rollout
from mtlbench.method import MTLMethod


def roll_out(method: MTLMethod, rollouts: Sequence[Rollout], metrics: Mapping[str, Any]) -> None:
    """Plays this rank's share of rollouts and adds the outcomes to the metrics of their tasks.

    Args:
        method: Method in evaluation mode.
        rollouts: All rollouts of a split, in the same order on every rank.
        metrics: A metric with ``add_episodes`` for every task that acts.
    """
    for rollout in rollouts[distributed.rank() :: distributed.world_size()]:
        solved = rollout.play(_policy(method, rollout.task))
        metrics[rollout.task].add_episodes(solved, len(rollout.episodes))


def _policy(method: MTLMethod, name: str) -> Policy:
    task = method.tasks[name]

    def policy(observations: Array) -> Array:
        inputs = torch.as_tensor(observations, dtype=torch.float32, device=method.device)
        return task.decode(method(inputs, [name])[name].float()).cpu().numpy()

    return policy
