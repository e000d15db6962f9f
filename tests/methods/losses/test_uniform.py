"""Uniform: the sum, and nothing else."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from mtlbench.balancing import make_balancer


def test_the_direction_is_the_sum():
    rule = make_balancer("uniform")
    assert_close(rule.direction(torch.tensor([[1.0, 0.0], [-1.0, 1.0]])), torch.tensor([0.0, 1.0]))
    assert_close(rule.direction(torch.tensor([[1.0, 0.0], [0.0, 2.0]])), torch.tensor([1.0, 2.0]))


def test_losses_do_not_matter():
    rows = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    rule = make_balancer("uniform")
    assert_close(rule.direction(rows, torch.tensor([1e-9, 1e9])), torch.tensor([4.0, -2.0]))


def test_one_task_and_zero_rows():
    rule = make_balancer("uniform")
    assert_close(rule.direction(torch.tensor([[3.0, -4.0]])), torch.tensor([3.0, -4.0]))
    assert_close(rule.direction(torch.zeros(3, 2)), torch.zeros(2))


def test_it_has_neither_state_nor_parameters():
    rule = make_balancer("uniform")
    rule.configure(3)
    assert not rule.state_dict() and not list(rule.parameters())
