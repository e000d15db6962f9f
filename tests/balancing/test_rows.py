"""Rows as lists of tensors: arithmetic block by block, and gradients that share memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtlbench.balancing.gradients import rows as row_lists
from mtlbench.balancing.gradients.surgery import Surgery, blend, collect, reduce, write
from tests.support.balancers import gramian_of


def some_rows(tasks=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(shape, generator=generator).double() for shape in ((4, 5), (3,), (2, 1, 30))] for _ in range(tasks)
    ]


def matrix_of(lists):
    return torch.stack([torch.cat([tensor.reshape(-1) for tensor in row]) for row in lists])


@pytest.mark.parametrize("numbers", [1 << 18, 3 * 1024])
def test_inner_products_and_sums_do_not_depend_on_blocks(numbers, monkeypatch):
    monkeypatch.setitem(row_lists.BLOCK, "cpu", numbers)
    one, other = some_rows(), some_rows(seed=1)
    big = [[*row, torch.randn(5000, generator=torch.Generator().manual_seed(i)).double()] for i, row in enumerate(one)]
    torch.testing.assert_close(row_lists.gramian(big), gramian_of(matrix_of(big)))
    torch.testing.assert_close(row_lists.gramian(one, other), matrix_of(one) @ matrix_of(other).T)
    expected = torch.tensor([0.5, -2.0, 3.0]).double() @ matrix_of(big)
    torch.testing.assert_close(matrix_of([row_lists.combine(big, [0.5, -2.0, 3.0])])[0], expected)


def test_dependent_rows_stay_dependent_in_single_precision():
    """In float32 throughout, the smallest eigenvalue would be noise of 1e-7 times the largest."""
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 500_000, generator=generator)
    values = torch.linalg.eigvalsh(row_lists.gramian([[one], [two], [one + two]]))
    assert values[0].abs() < 2e-9 * values[-1] and values[1] > 0.1 * values[-1]


def test_one_gradient_for_two_parameters_is_copied():
    """Autograd hands the very tensor to both terms of a sum; in place, one would change the other."""
    one, two = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    surgery = Surgery([one, two], [[], []])
    weights = torch.tensor([1.0, 2.0, 3.0])
    collected = collect(surgery, {i: ((one + two) * weights).sum() for i in range(2)}, None, torch.ones(()))
    reduced = reduce(surgery, collected, 1.0)
    write(reduced, blend(reduced, [2.0, 3.0], (0, 1)), (0, 1))
    assert torch.equal(one.grad, 5 * weights) and torch.equal(two.grad, 5 * weights)


def test_a_loss_that_is_a_parameter():
    """Its gradient is the factor itself, which all rows share."""
    parameter = nn.Parameter(torch.tensor(2.0))
    surgery = Surgery([parameter], [[], []])
    collected = collect(surgery, {0: parameter, 1: parameter}, None, torch.ones(()))
    reduced = reduce(surgery, collected, 1.0)
    assert torch.equal(reduced.gramian((0, 1)), torch.ones(2, 2).double())
    write(reduced, blend(reduced, [2.0, 3.0], (0, 1)), (0, 1))
    assert float(parameter.grad) == 5


def test_one_gradient_for_parts_of_a_sum_is_copied():
    x, y, z = (nn.Parameter(torch.ones(n)) for n in (1, 2, 3))
    weights = torch.tensor([1.0, 2.0, 3.0])
    surgery = Surgery([x, y, z], [[], []])
    collected = collect(surgery, {i: ((torch.cat([x, y]) + z) * weights).sum() for i in range(2)}, None, torch.ones(()))
    reduced = reduce(surgery, collected, 1.0)
    write(reduced, blend(reduced, [2.0, 3.0], (0, 1)), (0, 1))
    assert torch.equal(torch.cat([x.grad, y.grad]), 5 * weights) and torch.equal(z.grad, 5 * weights)
