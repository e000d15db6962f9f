"""Experts whose gate does not see the task."""

from __future__ import annotations

import torch

from mtlbench.methods.experts.moe import MoE
from tests.support.expert_methods import TASKS, build, images, losses


def test_all_tasks_share_routes_and_features():
    method = build(MoE, experts=4)
    outputs = method.network(images(), list(TASKS))
    assert outputs.representation.shape[0] == 4
    for layer in outputs.statistics["experts"].values():
        assert torch.equal(layer.probability, layer.probability[:1].expand(3, -1))
    assert all(len(method.network.task_modules(task)) == 1 for task in TASKS)


def test_the_balance_is_that_of_one_task():
    found, layers = losses(build(MoE, experts=4, balance=0.25))
    expected = sum(4 * (s.load[0] * s.probability[0]).sum() for s in layers.values())
    torch.testing.assert_close(found["load_balance"], 0.25 * expected)
