"""One router per task, each task balanced by itself."""

from __future__ import annotations

import torch

from mtlbench.methods.experts.m3vit import M3ViT
from tests.support.expert_methods import TASKS, build, losses, train_routers


def test_placement_and_sizes_are_the_paper_s():
    method = build(M3ViT)
    assert list(method.network.layers) == ["block1.mlp", "block3.mlp"]
    layer = method.network.layers["block1.mlp"]
    assert layer.experts.weight1.shape == (16, 32, 32) and layer.router.top_k == 4
    assert set(layer.router.matrices) == set(TASKS)


def test_every_task_is_balanced_by_itself():
    method = build(M3ViT, experts=4, top_k=2, balance=0.5, noise=0.0)
    found, layers = losses(method)
    share = sum(4 * (s.load * s.probability).sum(1).mean() for s in layers.values())
    variation = sum((s.importance.var(1) / s.importance.mean(1) ** 2).mean() for s in layers.values())
    torch.testing.assert_close(found["task_balance"], 0.5 * share)
    torch.testing.assert_close(found["importance"], 0.5 * variation)


def test_the_balance_spreads_a_task_that_prefers_one_expert():
    method = build(M3ViT, experts=4, top_k=2, balance=1.0, noise=0.0)
    with torch.no_grad():
        for router in method.network.routers:
            router.matrices["kind"].weight.mul_(30)
    values = train_routers(method)
    assert values[0] > 2.1 and values[-1] < 2.01  # two layers, 1 each at best
