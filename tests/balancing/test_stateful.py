"""State as large as a gradient: shape from the first step, and what loading makes of it."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from mtlbench.balancing.rules.stateful import MemoryRule
from mtlbench.errors import MethodError
from tests.support.balancers import context, rows


class Adds(MemoryRule):
    def combine_gradients(self, jacobian, ctx):
        memory = self.recall(jacobian, *jacobian.shape)
        memory += jacobian
        return self.blend(torch.ones(len(jacobian)), ctx.active)


def made(tasks=2):
    rule = Adds()
    rule.configure(tasks)
    return rule


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_zero_at_first_and_like_the_gradients(dtype):
    rule, gradients = made(), rows((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)).to(dtype)
    assert rule.memory.numel() == 0
    assert torch.equal(rule.combine_gradients(gradients, context(torch.ones(2))), gradients.sum(0))
    assert rule.memory.dtype == dtype and torch.equal(rule.memory, gradients)
    assert torch.equal(rule.combine_gradients(gradients, context(torch.ones(2))), 2 * gradients.sum(0))


def test_a_saved_rule_loads_into_an_empty_one():
    outer = nn.ModuleDict({"rule": made()})
    gradients = torch.randn(2, 5, dtype=torch.float64)
    outer["rule"].combine_gradients(gradients, context(torch.ones(2)))
    file = io.BytesIO()
    torch.save(outer.state_dict(), file)
    file.seek(0)
    other = nn.ModuleDict({"rule": made()})
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other["rule"].memory.dtype == torch.float64 and torch.equal(other["rule"].memory, gradients)
    # What was loaded is a copy, and loading takes a rule back to before its first step, too.
    other["rule"].memory += 1
    assert torch.equal(outer["rule"].memory, gradients)
    other.load_state_dict(nn.ModuleDict({"rule": made()}).state_dict())
    assert other["rule"].memory.numel() == 0


def test_a_checkpoint_without_it_is_refused():
    with pytest.raises(RuntimeError, match="memory"):
        made().load_state_dict({})


def test_blend_is_over_active_tasks():
    rule = made(3)
    rule.recall(torch.ones(()), 3, 2).copy_(torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 1.0]]))
    assert rule.blend(torch.tensor([2.0, 3.0]).double(), (0, 2)).tolist() == [2.0, 3.0]


def test_it_follows_a_change_of_precision():
    rule, ctx = made(), context(torch.ones(2))
    rule.combine_gradients(torch.ones(2, 3), ctx)
    found = rule.combine_gradients(torch.ones(2, 3).double(), ctx)
    assert found.dtype == rule.memory.dtype == torch.float64 and found.tolist() == [4.0] * 3


def test_another_network_is_noticed():
    rule = made()
    rule.direction(torch.ones(2, 3))
    with pytest.raises(MethodError, match=r"Adds .* Found \(2, 4\) .* \(2, 3\)"):
        rule.direction(torch.ones(2, 4))
    rule.configure(2)
    assert rule.direction(torch.ones(2, 4)).tolist() == [2.0] * 4
