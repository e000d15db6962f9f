"""`TaskAdam` is PyTorch's Adam task by task, leaves absent tasks alone, and goes on from a checkpoint."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from mtlbench.balancing.rules.adam import TaskAdam
from tests.support.balancers import rows


def test_it_is_adam_and_absent_tasks_wait():
    ours, theirs = (
        TaskAdam(rows(1.0, -2.0, 0.5), 0.1),
        [torch.tensor([v], dtype=torch.float64) for v in (1.0, -2.0, 0.5)],
    )
    optimisers = [torch.optim.Adam([value], lr=0.1) for value in theirs]
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        active = [0, 2] if step == 2 else [0, 1, 2]
        gradient = torch.randn(len(active), generator=generator, dtype=torch.float64)
        before = ours.values[1].clone()
        ours.step(gradient, active)
        for i, slope in zip(active, gradient, strict=True):
            theirs[i].grad = slope[None]
            optimisers[i].step()
        assert_close(ours.values, torch.cat(theirs))
        assert step != 2 or torch.equal(ours.values[1], before)


def test_state_is_in_the_checkpoint():
    one, other = (TaskAdam(torch.zeros(2), 0.1) for _ in range(2))
    one.step(rows(1.0, -3.0), [0, 1])
    other.load_state_dict(one.state_dict())
    for rule in (one, other):
        rule.step(rows(0.1, 0.2), [0, 1])
    assert torch.equal(one.values, other.values) and one.values.abs().min() > 0.05
